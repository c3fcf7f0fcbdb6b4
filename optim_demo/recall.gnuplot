# Draws recall.png from what optim_demo/recall compare wrote: gnuplot -e "folder='...'".
# KIND-WHEN.csv: bytes_back, recalls, accuracy. Nearer than 64 bytes there are too few to tell.
set terminal pngcairo size 980,440 font "sans,10"
set output folder . "/recall.png"
set datafile separator ","
set grid
set logscale x 2
set xlabel "the answer lies so many bytes back (and up to twice that)"
set format y "%.0f%%"
set yrange [0:102]
set xrange [64:*]
percent(x) = 100 * x
kinds = "dense faithful balanced window"
titles = "dense 'HiP, faithful' 'HiP, balanced' 'sliding window'"
colours = "#404040 #2654a0 #50a0e0 #308060"
curve(kind, when) = folder . "/" . kind . "-" . when . ".csv"
set multiplot layout 1,2
set key bottom left
set ylabel "recalled"
set title "16,384 bytes; open: before, filled: after fine-tuning"
plot for [n = 1:4] curve(word(kinds, n), "before") every ::1 using 1:($1 < 64 ? NaN : percent($3)) \
         with linespoints linewidth 1.5 pointtype 6 dashtype 2 linecolor rgb word(colours, n) \
         notitle, \
     for [n = 1:4] curve(word(kinds, n), "after") every ::1 using 1:($1 < 64 ? NaN : percent($3)) \
         with linespoints linewidth 2 pointtype 7 linecolor rgb word(colours, n) \
         title word(titles, n)
unset ylabel
unset key
set title "131,072 bytes, gone on to through masks of the preset faithful"
plot for [n = 1:4] curve(word(kinds, n), "farther") every ::1 using 1:($1 < 64 ? NaN : percent($3)) \
         with linespoints linewidth 2 pointtype 7 linecolor rgb word(colours, n) \
         title word(titles, n)
unset multiplot
