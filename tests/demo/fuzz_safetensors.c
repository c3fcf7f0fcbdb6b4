/* Hostile bytes as a safetensors file: what the reader accepts must lie inside of them. */
#include "safetensors.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int condition)
{
    if (!condition)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"a", "b", "", "__metadata__"};
    failure why = {""};
    safetensors *file;
    if (!safetensors_parse(&file, data, size, "input", &why)) {
        expect(!file && why.text[0]);
        return 0;
    }
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const safetensors_tensor *tensor = safetensors_find(file, names[n]);
        if (!tensor)
            continue;
        const uint8_t *begin = tensor->data;
        expect(tensor->bytes >= 0 && begin >= data && begin <= data + size);
        expect(tensor->bytes <= data + size - begin);
        expect(tensor->ndim >= 0 && tensor->ndim <= SAFETENSORS_MAX_DIMS);
    }
    safetensors_find_note(file, "step");
    safetensors_free(file);
    return 0;
}
