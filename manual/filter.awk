# For Doxygen: the plain comments of the headers become documentation of what they stand before or
# behind, the first one of its file, and the list of statuses an enum of its entries.
FNR == 1 {
    print "/** \\file\n * \\verbatim"
    head = 1
}
head {
    sub(/^\/\*/, " *")
    head = !sub(/ *\*\/$/, "\n * \\endverbatim */")
    print
    next
}
/^    X\(HPA_/ {
    split($0, part, /[(,]/)
    sentence = $0
    gsub(/^[^"]*"|"[^"]*$/, "", sentence)
    statuses = statuses part[2] " =" part[3] ", /**< " sentence " */ "
}
/^#define HPA_STATUS_ENUM/ { print statuses; skip = 3 }
skip > 0 { skip--; print ""; next }
/^\/\* [^.]*\*\/$/ { print; next } # a headline
/^ *\/\* / { sub(/\/\* /, "/** ") }
/; *\/\* / { sub(/\/\* /, "/**< ") }
/, *\/\* / || /^ *[A-Z0-9_]+ = [0-9]+ *\/\* / { sub(/\/\* /, "/**< ") }
/^#define [A-Z_]+ [0-9.]+ *\/\* / { sub(/\/\* /, "/**< ") }
{ print }
