# Draws recall.png from what optim_demo/recall compare wrote: gnuplot -e "folder='...'".
# KIND-CONTEXT-WHEN.csv: bytes_back, recalls, accuracy. Nearer than 64 bytes there are too few to
# tell.
set terminal pngcairo size 980,440 font "sans,10"
set output folder . "/recall.png"
set datafile separator ","
set grid
set logscale x 2
set xlabel "the answer lies so many bytes back (and up to twice that)"
set format y "%.0f%%"
set yrange [0:102]
set xrange [64:*]
kinds = "dense faithful-256 faithful balanced window"
titles = "dense 'HiP, 256 rep\\_tokens' 'HiP, faithful' 'HiP, balanced' window"
colours = "#404040 #803080 #2654a0 #50a0e0 #308060"
curve(n, context, when) = folder . "/" . word(kinds, n) . "-" . context . "-" . when . ".csv"
share(distance, accuracy) = distance < 64 ? NaN : 100 * accuracy
set multiplot layout 1,2
set key bottom left
set ylabel "recalled"
do for [context in "16384 131072"] {
    drawn = context == 16384 ? "1 3 4 5" : "1 2 3 5"
    set title context . " bytes; open: before, filled: after fine-tuning"
    plot for [n in drawn] curve(int(n), context, "before") every ::1 using 1:(share($1, $3)) \
             with linespoints linewidth 1.5 pointtype 6 dashtype 2 \
             linecolor rgb word(colours, int(n)) notitle, \
         for [n in drawn] curve(int(n), context, "after") every ::1 using 1:(share($1, $3)) \
             with linespoints linewidth 2 pointtype 7 \
             linecolor rgb word(colours, int(n)) title word(titles, int(n))
    unset ylabel
}
unset multiplot
