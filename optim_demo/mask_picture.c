#include "mask_picture.h"

#include "whole_file.h"

#include <errno.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

enum { FUTURE, DROPPED, SINK, WINDOW, FOUND, N_COLOURS };

static const png_color palette[N_COLOURS] = {[FUTURE] = {255, 255, 255},
                                             [DROPPED] = {226, 230, 236},
                                             [SINK] = {214, 120, 50},
                                             [WINDOW] = {48, 128, 96},
                                             [FOUND] = {38, 84, 160}};

static png_byte colour_of(char mark)
{
    switch (mark) {
    case 'S':
        return SINK;
    case 'W':
        return WINDOW;
    case '#':
        return FOUND;
    case '.':
        return DROPPED;
    default:
        return FUTURE;
    }
}

/* Lines and the longest line of a text whose lines all end with '\n'. */
static void measure(const char *drawing, int64_t *rows, int64_t *columns)
{
    *rows = *columns = 0;
    for (const char *line = drawing, *end; (end = strchr(line, '\n')); line = end + 1) {
        (*rows)++;
        *columns = end - line > *columns ? end - line : *columns;
    }
}

static void paint(png_byte *pixels, const char *drawing, int64_t rows, int64_t columns,
                  int64_t size)
{
    int64_t row = 0;
    const char *line = drawing;
    for (int64_t y = 0; y < size; y++) {
        for (; row < y * rows / size; row++)
            line = strchr(line, '\n') + 1;
        int64_t length = strchr(line, '\n') - line;
        for (int64_t x = 0; x < size; x++) {
            int64_t column = x * columns / size;
            pixels[y * size + x] = column < length ? colour_of(line[column]) : FUTURE;
        }
    }
}

/* libpng's own would print. */
static void on_error(png_struct *png, const char *text)
{
    (void)text;
    png_longjmp(png, 1);
}

static void on_warning(png_struct *png, const char *text)
{
    (void)png, (void)text;
}

static bool write_png(FILE *stream, const png_byte *pixels, int64_t size)
{
    png_struct *png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, on_error, on_warning);
    png_info *info = png ? png_create_info_struct(png) : NULL;
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_write_struct(&png, &info);
        return false;
    }
    png_init_io(png, stream);
    png_set_IHDR(png, info, (png_uint_32)size, (png_uint_32)size, 8, PNG_COLOR_TYPE_PALETTE,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_PLTE(png, info, palette, N_COLOURS);
    png_write_info(png, info);
    for (int64_t y = 0; y < size; y++)
        png_write_row(png, pixels + y * size);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    return true;
}

bool mask_picture_write(const char *path, const char *drawing, int64_t size, failure *why)
{
    int64_t rows, columns;
    measure(drawing, &rows, &columns);
    png_byte *pixels = malloc((size_t)(size * size));
    if (!pixels || rows == 0 || columns == 0) {
        free(pixels);
        return fail(why, "%s: there is no mask to draw", path);
    }
    paint(pixels, drawing, rows, columns, size);
    whole_file file;
    bool done = whole_file_open(&file, path, why);
    if (done) {
        bool good = write_png(file.stream, pixels, size);
        if (!good)
            fail_to_write(why, path, errno);
        done = whole_file_close(&file, good, why);
    }
    free(pixels);
    return done;
}
