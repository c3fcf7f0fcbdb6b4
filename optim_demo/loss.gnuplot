# Draws loss.png from the logs in `folder`: the training at the short context, and beside it the
# three fine-tunings at the long one, which read the same text in the same order.
set terminal pngcairo size 1200,480 font "sans,10"
set output folder . "/loss.png"
set datafile separator ","
set multiplot layout 1,2
set grid
set xlabel "steps"
set ylabel "training loss, nats a byte"

set title "dense attention, short context"
plot folder . "/short.csv" using 1:3 every ::1 with lines linecolor "#d0d0d0" title "each step", \
     "" using 1:3 every ::1 smooth bezier with lines linewidth 2 linecolor "#265aa0" title "smoothed"

set title "fine-tuning at the long context (smoothed)"
plot folder . "/dense-after.csv" using 1:3 every ::1 smooth bezier with lines linewidth 2 \
         linecolor "#404040" title "dense", \
     folder . "/hip-after.csv" using 1:3 every ::1 smooth bezier with lines linewidth 2 \
         linecolor "#265aa0" title "HiP", \
     folder . "/window-after.csv" using 1:3 every ::1 smooth bezier with lines linewidth 2 \
         linecolor "#308060" title "sliding window"
unset multiplot
