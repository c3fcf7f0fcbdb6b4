/* A file that appears whole or not at all: it is written under another name in the same folder,
 * and renamed when the disk has it. Whatever goes wrong before leaves the old file as it was. */
#ifndef DEMO_WHOLE_FILE_H
#define DEMO_WHOLE_FILE_H

#include "failure.h"

#include <stdio.h>

typedef struct whole_file {
    FILE *stream;
    char *path, *temporary;
} whole_file;

/* Can a file be put there? For asking before hours of work, not after. */
bool whole_file_check(const char *path, failure *why);

bool whole_file_open(whole_file *file, const char *path, failure *why);
/* Ends the writing. good false: something else went wrong, and *why already says what. */
bool whole_file_close(whole_file *file, bool good, failure *why);

#endif
