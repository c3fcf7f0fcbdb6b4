/* A user's loss under the checker: the right gradient passes, a wrong one does not. */
#include <hpa/gradcheck.h>

#include <stdio.h>

#define N 5

static double x[N] = {0.5, -1, 2, 3, -0.25};

/* d loss / d x[i] = 2 (i + 1) x[i] */
static double loss(void *context)
{
    double sum = 0;
    int i;
    (void)context;
    for (i = 0; i < N; i++)
        sum += (i + 1) * x[i] * x[i];
    return sum;
}

static hpa_tensor vector(double *data)
{
    hpa_tensor tensor = {data, HPA_F64, 1, {N, 0, 0, 0}, {1, 0, 0, 0}};
    return tensor;
}

int main(void)
{
    double gradient[N];
    hpa_gradcheck_input input;
    hpa_gradcheck_report report;
    int i;

    for (i = 0; i < N; i++)
        gradient[i] = 2 * (i + 1) * x[i];
    input.name = "x";
    input.value = vector(x);
    input.gradient = vector(gradient);
    if (hpa_gradcheck_loss(loss, NULL, &input, 1, NULL, &report) != HPA_OK || !report.passed) {
        fprintf(stderr, "the right gradient: %s\n", report.message);
        return 1;
    }
    gradient[3] *= 1.01;
    if (hpa_gradcheck_loss(loss, NULL, &input, 1, NULL, &report) != HPA_OK || report.passed) {
        fprintf(stderr, "a wrong gradient passed\n");
        return 1;
    }
    puts(report.message);
    return 0;
}
