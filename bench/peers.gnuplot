# Draws peers.png from what compare_torch.py --csv wrote: gnuplot -e "folder='...'".
# peers.csv: tokens, then milliseconds of a step by cuDNN, FlashAttention-2, FlexAttention, libhpa.
set terminal pngcairo size 720,440 font "sans,10"
set output folder . "/peers.png"
set datafile separator ","
set datafile missing ""
set grid
set logscale xy
set logscale x 2
set xlabel "tokens"
set ylabel "ms, forward and backward"
set format x "%.0f"
set key top left
file = folder . "/peers.csv"
plot file every ::1 using 1:3 with linespoints linewidth 2 pointtype 6 linecolor "#909090" \
         title "dense, FlashAttention-2", \
     file every ::1 using 1:2 with linespoints linewidth 2 pointtype 7 linecolor "#404040" \
         title "dense, cuDNN", \
     file every ::1 using 1:4 with linespoints linewidth 2 pointtype 7 linecolor "#308060" \
         title "FlexAttention, the same blocks, mask given", \
     file every ::1 using 1:5 with linespoints linewidth 2 pointtype 7 linecolor "#2654a0" \
         title "libhpa, with its search for the mask"
