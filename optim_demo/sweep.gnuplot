# Draws sweep.png: gnuplot -e "folder='...'". rows.csv and front.csv, made by optim_demo/sweep draw:
# knob, options, loss above dense, milliseconds, of these the mask's, density.
set terminal pngcairo size 860,560 font "sans,10"
set output folder . "/sweep.png"
set datafile separator ","
set grid
set xlabel "milliseconds of mask, forward and backward"
set ylabel "held-out loss above dense attention, nats a byte"
set key top right
set logscale x 2
rows = folder . "/rows.csv"
knobs = "top-k block-k block-q beam rep-tokens leaf-tokens query-stride share-heads several"
is(name) = stringcolumn(1) eq name ? column(3) : NaN
plot folder . "/front.csv" using 4:3 with lines linewidth 2 linecolor "#c0c0c0" \
         title "none is faster and better", \
     for [n = 1:words(knobs)] rows using 4:(is(word(knobs, n))) with points pointsize 1.1 \
         pointtype n + 3 linecolor n title word(knobs, n), \
     rows using 4:(is("preset")) with points pointtype 7 pointsize 1.8 linecolor "#000000" \
         title "presets", \
     rows using 4:(is("preset")):(substr(stringcolumn(2), 10, -1)) with labels offset 0,1 \
         font "sans,11" notitle
