/* The parts of the program hpa-gradcheck. */
#ifndef HPA_GRADCHECK_PROGRAM_H
#define HPA_GRADCHECK_PROGRAM_H

#include <hpa/gradcheck.h>

/* What the command line asks for. */
struct command {
    hpa_desc desc; /* dtype, device and reference hold for every case; the rest for a single one */
    bool single;   /* a shape was given: check that one, not the sweep */
    int32_t *lengths; /* packed: [desc.batch], allocated */
    hpa_gradcheck_options options;
    bool json;
    bool help;
};

/* false: the command line cannot be, and why is on stderr in one line. */
bool command_parse(struct command *command, int argc, char **argv);
void command_destroy(struct command *command);
void command_print_help(void);

/* One description and what came of it. */
struct gradcheck_case {
    const char *name;
    hpa_desc desc;
    const int32_t *lengths_q; /* packed: of each sequence */
    const int32_t *lengths_kv;
    hpa_status status;
    hpa_gradcheck_report report;
    double seconds;
};

/* The representative sweep: *n cases in static storage, with the dtype, device and reference of
 * desc. They are written anew by each call. */
struct gradcheck_case *sweep_cases(const hpa_desc *desc, int *n);

/* A printed report. Each returns false where stdout could not be written. */
bool print_single(const struct gradcheck_case *checked);
bool print_sweep_line(const struct gradcheck_case *checked, int number, int n);
bool print_sweep_end(const struct gradcheck_case *cases, int n);
bool print_json(const struct gradcheck_case *cases, int n);

#endif
