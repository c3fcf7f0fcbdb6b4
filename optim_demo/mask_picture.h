/* A mask as a PNG file. */
#ifndef DEMO_MASK_PICTURE_H
#define DEMO_MASK_PICTURE_H

#include "failure.h"

#include <stdint.h>

/* drawing: the text of attention_draw_mask, stretched to a square of size x size pixels: queries go
 * down, keys to the right. */
bool mask_picture_write(const char *path, const char *drawing, int64_t size, failure *why);

#endif
