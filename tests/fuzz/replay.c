/* Runs a fuzz target on files, without libFuzzer. A broken promise ends the process. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 0;
    }
    uint8_t bytes[65536];
    const size_t size = fread(bytes, 1, sizeof bytes, file);
    const int good = !ferror(file);
    fclose(file);
    if (!good)
        return 0;
    /* of exactly this size, so that a sanitizer sees a read past its end */
    uint8_t *exact = malloc(size ? size : 1);
    if (!exact)
        return 0;
    for (size_t n = 0; n < size; n++)
        exact[n] = bytes[n];
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return 1;
}

int main(int argc, char **argv)
{
    for (int n = 1; n < argc; n++)
        if (!replay(argv[n])) {
            fprintf(stderr, "cannot replay %s\n", argv[n]);
            return EXIT_FAILURE;
        }
    printf("%d inputs\n", argc - 1);
    return argc > 1 ? EXIT_SUCCESS : EXIT_FAILURE;
}
