#include "whole_file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool whole_file_check(const char *path, failure *why)
{
    struct stat status;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        return fail(why, "cannot write %s: it is not a regular file, expected one or a new name",
                    path);
    char *copy = strdup(path);
    bool writable = copy && access(dirname(copy), W_OK | X_OK) == 0;
    int error = errno;
    free(copy);
    return writable || fail_to_write(why, path, error);
}

static void forget(whole_file *file)
{
    free(file->path);
    free(file->temporary);
    *file = (whole_file){0};
}

bool whole_file_open(whole_file *file, const char *path, failure *why)
{
    *file = (whole_file){0};
    if (!whole_file_check(path, why))
        return false;
    size_t room = strlen(path) + sizeof ".partial";
    file->path = strdup(path);
    file->temporary = malloc(room);
    if (file->path && file->temporary) {
        snprintf(file->temporary, room, "%s.partial", path);
        file->stream = fopen(file->temporary, "wb");
    }
    if (file->stream)
        return true;
    int error = errno;
    forget(file);
    return fail_to_write(why, path, error);
}

/* A rename lasts when the folder has reached the disk. Some file systems cannot sync a folder, and
 * then there is nothing more to be done. */
static void sync_folder(char *path)
{
    int folder = open(dirname(path), O_RDONLY | O_DIRECTORY);
    if (folder < 0)
        return;
    fsync(folder);
    close(folder);
}

bool whole_file_close(whole_file *file, bool good, failure *why)
{
    errno = 0;
    bool written = good && !ferror(file->stream) && fflush(file->stream) == 0 &&
                   fsync(fileno(file->stream)) == 0;
    int error = errno;
    if (fclose(file->stream) != 0 && written) {
        written = false;
        error = errno;
    }
    if (written && rename(file->temporary, file->path) != 0) {
        written = false;
        error = errno;
    }
    if (!written)
        unlink(file->temporary);
    if (good && !written)
        fail_to_write(why, file->path, error ? error : EIO);
    if (written)
        sync_folder(file->path);
    forget(file);
    return written;
}
