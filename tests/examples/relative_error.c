/* relative_error A B LOW HIGH: is ||a - b|| / ||b||, over two files of floats, from LOW to HIGH? */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    FILE *a = argc == 5 ? fopen(argv[1], "rb") : NULL, *b = a ? fopen(argv[2], "rb") : NULL;
    if (!b)
        return fprintf(stderr, "usage: relative_error A B LOW HIGH\n"), 2;
    double difference = 0, norm = 0;
    long n = 0;
    float x, y;
    for (; fread(&x, sizeof x, 1, a) == 1 && fread(&y, sizeof y, 1, b) == 1; n++) {
        difference += ((double)x - (double)y) * ((double)x - (double)y);
        norm += (double)y * (double)y;
    }
    const int same_length = fread(&y, sizeof y, 1, b) == 0 && feof(a);
    const double error = sqrt(difference / norm);
    printf("%s: %ld numbers, relative error %.2e, expected %s to %s\n", argv[1], n, error, argv[3],
           argv[4]);
    fclose(a);
    fclose(b);
    return same_length && error >= atof(argv[3]) && error <= atof(argv[4]) ? 0 : 1;
}
