# Draws positions.png: gnuplot -e "folder='...'". positions.csv: attention, first position, loss,
# its mean distance from dense attention's, that distance's standard error.
set terminal pngcairo size 640,640 font "sans,10"
set output folder . "/positions.png"
set datafile separator ","
set grid
set logscale x 2
set xrange [64:*]
set key top right
file = folder . "/positions.csv"
middle(first) = first * sqrt(2)
is(name) = stringcolumn(1) eq name
names = "hip-before hip-after window-before window-after"
titles = "'HiP' 'HiP, fine-tuned' 'sliding window' 'sliding window, fine-tuned'"
colour(n) = n <= 2 ? 0x2654a0 : 0x308060
set multiplot layout 2,1
set ylabel "held-out loss, nats a byte"
plot file using (is("dense-before") ? middle($2) : NaN):3 with linespoints linewidth 2 \
         pointtype 6 linecolor "#404040" title "dense", \
     file using (is("dense-after") ? middle($2) : NaN):3 with linespoints linewidth 2 \
         pointtype 7 linecolor "#404040" title "dense, fine-tuned"
set key top left
set xlabel "position in the context"
set ylabel "above dense attention treated alike"
plot for [n = 1:4] file using (is(word(names, n)) ? middle($2) : NaN):4:5 with yerrorlines \
         linewidth 2 pointtype (n % 2 ? 6 : 7) linecolor rgb colour(n) title word(titles, n)
unset multiplot
