# Draws recall.png from what optim_demo/recall accuracy printed: gnuplot -e "folder='...'".
# NAME.csv: bytes_back, recalls, accuracy. Nearer than 64 bytes there are too few to tell.
set terminal pngcairo size 640,440 font "sans,10"
set output folder . "/recall.png"
set datafile separator ","
set grid
set logscale x 2
set xlabel "the answer lies so many bytes back (and up to twice that)"
set ylabel "recalled"
set format y "%.0f%%"
set key bottom left
percent(x) = 100 * x
set xrange [64:*]
set yrange [0:102]
curve(name) = folder . "/" . name . ".csv"
plot curve("dense") every ::1 using 1:(percent($3)) with linespoints linewidth 2 pointtype 7 \
         linecolor "#404040" title "dense", \
     curve("hip-before") every ::1 using 1:(percent($3)) with linespoints linewidth 2 \
         pointtype 6 linecolor "#2654a0" title "HiP, not fine-tuned", \
     curve("hip-after") every ::1 using 1:(percent($3)) with linespoints linewidth 2 \
         pointtype 7 linecolor "#2654a0" title "HiP, fine-tuned", \
     curve("window-before") every ::1 using 1:(percent($3)) with linespoints linewidth 2 \
         pointtype 6 linecolor "#308060" title "sliding window, not fine-tuned", \
     curve("window-after") every ::1 using 1:(percent($3)) with linespoints linewidth 2 \
         pointtype 7 linecolor "#308060" title "sliding window, fine-tuned"
