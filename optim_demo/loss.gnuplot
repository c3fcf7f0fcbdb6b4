# Draws loss.png from the logs in `folder`: the three fine-tunings, and how far HiP and the window
# are from dense attention, step by step: all three read the same text in the same order.
set terminal pngcairo size 1000,440 font "sans,10"
set output folder . "/loss.png"
set datafile separator ","
set grid
set xlabel "steps"

# The mean of the last few steps, fading; call start() before each curve.
memory = 0.8
mean = NaN
start(x) = (mean = NaN, x)
smooth(y) = (mean = (mean == mean ? memory * mean + (1 - memory) * y : y), mean)

dense = folder . "/dense-after.csv"
hip = folder . "/hip-after.csv"
window = folder . "/window-after.csv"
beside(file) = "< paste -d, " . file . " " . dense # its loss is column 3, that of dense column 18

set multiplot layout 1,2
set ylabel "training loss, nats a byte"
set title "fine-tuning"
plot dense every ::1 using 1:3 with lines linewidth 2 linecolor "#404040" title "dense", \
     hip every ::1 using 1:3 with lines linewidth 2 linecolor "#2654a0" title "HiP", \
     window every ::1 using 1:3 with lines linewidth 2 linecolor "#308060" title "sliding window"

set title "the same, minus that of dense attention (mean of the last 5)"
set ylabel "nats a byte"
plot x = start(0), beside(hip) every ::1 using 1:(smooth($3 - $18)) with lines linewidth 2 \
         linecolor "#2654a0" title "HiP", \
     x = start(0), beside(window) every ::1 using 1:(smooth($3 - $18)) with lines linewidth 2 \
         linecolor "#308060" title "sliding window"
unset multiplot
