# Draws sweep.png: gnuplot -e "folder='...'". rows.csv and front.csv, made by optim_demo/sweep draw:
# knob, options, loss above dense, milliseconds, of these the mask's, density, recalled.
set terminal pngcairo size 820,900 font "sans,10"
set output folder . "/sweep.png"
set datafile separator ","
set grid
set logscale x 2
set xrange [5:38]
set xtics (6, 8, 10, 12, 16, 20, 24, 32)
set key outside right top
set lmargin 10
set rmargin 24
rows = folder . "/rows.csv"
knobs = "top-k block-k block-q beam rep-tokens leaf-tokens query-stride share-heads several"
is(name, y) = stringcolumn(1) eq name ? y : NaN
# of a row: its number, or "fast" of "--preset fast"; nothing where more is said
setting(options) = words(options) == 2 ? word(options, 2) : ""
percent(x) = 100 * x
set multiplot layout 2,1
set ylabel "held-out loss above dense attention, nats a byte"
plot folder . "/front.csv" using 4:3 with lines linewidth 2 linecolor "#c0c0c0" \
         title "none is faster and better", \
     for [n = 1:words(knobs)] rows using 4:(is(word(knobs, n), $3)) with points pointsize 1.1 \
         pointtype n + 3 linecolor n title word(knobs, n), \
     rows using 4:(is("window", $3)) with points pointtype 2 pointsize 1.5 linecolor "#308060" \
         title "sliding window", \
     rows using 4:(is("dense", $3)) with points pointtype 1 pointsize 1.5 linecolor "#404040" \
         title "dense", \
     rows using 4:(is("preset", $3)) with points pointtype 7 pointsize 1.6 linecolor "#000000" \
         title "presets", \
     rows using 4:(is("preset", $3)):(setting(stringcolumn(2))) with labels offset 0,1 \
         font "sans,11" notitle, \
     rows using 4:(is("top-k", $3)):(setting(stringcolumn(2))) with labels offset 0,-1 \
         font "sans,8" notitle
unset key
set xlabel "milliseconds of mask, forward and backward, all layers, 4 x 16,384 bytes"
set ylabel "recalled, of keys 2,048 to 16,383 bytes back"
set yrange [0:104]
set format y "%.0f%%"
plot for [n = 1:words(knobs)] rows using 4:(is(word(knobs, n), percent($7))) with points \
         pointsize 1.1 pointtype n + 3 linecolor n title word(knobs, n), \
     rows using 4:(is("window", percent($7))) with points pointtype 2 pointsize 1.5 \
         linecolor "#308060" title "sliding window", \
     rows using 4:(is("dense", percent($7))) with points pointtype 1 pointsize 1.5 \
         linecolor "#404040" title "dense", \
     rows using 4:(is("preset", percent($7))) with points pointtype 7 pointsize 1.6 \
         linecolor "#000000" title "presets", \
     rows using 4:(is("preset", percent($7))):(setting(stringcolumn(2))) with labels offset 0,1 \
         font "sans,11" notitle
unset multiplot
