/* Why something failed, in one line for the person at the keyboard. Functions that can fail return
 * false and fill this in; main prints it and exits with status 2. */
#ifndef DEMO_FAILURE_H
#define DEMO_FAILURE_H

#include <stdbool.h>

typedef struct failure {
    char text[1024];
} failure;

/* Writes the line and returns false, so that a caller can write: return fail(why, ...); */
bool fail(failure *why, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The line for a file that cannot be written; error is what errno was. */
bool fail_to_write(failure *why, const char *path, int error);

#endif
