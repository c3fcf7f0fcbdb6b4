#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static const char *const phase_names[N_PHASES] = {
    [PHASE_MASK] = "mask",         [PHASE_FORWARD] = "forward", [PHASE_BACKWARD] = "backward",
    [PHASE_PRODUCTS] = "products", [PHASE_REST] = "rest",
};

static double sum_of(const double seconds[N_PHASES])
{
    double sum = 0;
    for (int n = 0; n < N_PHASES; n++)
        sum += seconds[n];
    return sum;
}

bool report_open(report *self, const char *log_path, int64_t first_step, int64_t steps,
                 int64_t tokens_a_step, failure *why)
{
    *self = (report){.log_path = log_path,
                     .terminal = isatty(STDOUT_FILENO) != 0,
                     .first_step = first_step,
                     .steps = steps,
                     .tokens_a_step = tokens_a_step,
                     .next_line = first_step + 1};
    if (steps <= first_step)
        return true;
    self->log = fopen(log_path, first_step > 0 ? "a" : "w");
    if (!self->log)
        return fail_to_write(why, log_path, errno);
    if (first_step > 0)
        return true;
    fputs("step,tokens,loss,held_out_loss,learning_rate,gradient_norm,mask_density,"
          "tokens_per_second,seconds",
          self->log);
    for (int n = 0; n < N_PHASES; n++)
        fprintf(self->log, ",%s_share", phase_names[n]);
    fputs(",peak_gib\n", self->log);
    return true;
}

double report_speed(const report *self, int64_t step)
{
    double tokens = (double)((step - self->first_step) * self->tokens_a_step);
    return self->training_seconds > 0 ? tokens / self->training_seconds : 0;
}

/* One field of the log; nothing where there is nothing new. */
static void put_number(FILE *log, double value)
{
    if (isnan(value))
        fputc(',', log);
    else
        fprintf(log, ",%.6g", value);
}

static bool put_row(report *self, const report_row *row, failure *why)
{
    fprintf(self->log, "%" PRId64 ",%" PRId64, row->step, row->step * self->tokens_a_step);
    const double fields[] = {row->loss,
                             row->held_out_loss,
                             row->learning_rate,
                             row->gradient_norm,
                             row->density,
                             report_speed(self, row->step),
                             self->training_seconds};
    for (size_t n = 0; n < sizeof fields / sizeof *fields; n++)
        put_number(self->log, fields[n]);
    double seconds = sum_of(row->seconds); /* 0 where there was no step: shares of NAN */
    for (int n = 0; n < N_PHASES; n++)
        put_number(self->log, row->seconds[n] / seconds);
    put_number(self->log, seconds > 0 ? row->peak_bytes / 0x1p30 : NAN);
    fputc('\n', self->log);
    return (fflush(self->log) == 0 && !ferror(self->log)) ||
           fail_to_write(why, self->log_path, errno);
}

static void show_progress(report *self, const report_row *row)
{
    enum { WIDTH = 24 };
    static const char full[] = "########################", empty[] = "........................";
    int64_t done = row->step - self->first_step, left = self->steps - row->step;
    int bar = (int)(WIDTH * row->step / self->steps);
    double seconds = done > 0 ? self->training_seconds / (double)done * (double)left : 0;
    printf("\r\033[K[%.*s%.*s] %" PRId64 "/%" PRId64 "  loss %.3f  %.1fk tokens/s  %d:%02d left",
           bar, full, WIDTH - bar, empty, row->step, self->steps, row->loss,
           report_speed(self, row->step) / 1000, (int)(seconds / 60), (int)fmod(seconds, 60));
    fflush(stdout);
    self->bar_shown = true;
}

static void show_line(report *self, const report_row *row)
{
    printf("step %" PRId64 "/%" PRId64 "  loss %.4f  %.1fk tokens/s", row->step, self->steps,
           row->loss, report_speed(self, row->step) / 1000);
    if (!isnan(row->held_out_loss))
        printf("  held-out loss %.4f", row->held_out_loss);
    putchar('\n');
    fflush(stdout);
    while (self->next_line <= row->step)
        self->next_line += self->steps > 20 ? self->steps / 20 : 1;
}

bool report_step(report *self, const report_row *row, failure *why)
{
    self->training_seconds += sum_of(row->seconds);
    for (int n = 0; n < N_PHASES; n++)
        self->seconds[n] += row->seconds[n];
    if (self->terminal && !isnan(row->loss))
        show_progress(self, row);
    else if (!isnan(row->loss) && (row->step >= self->next_line || row->step == self->steps))
        show_line(self, row);
    if (self->terminal && !isnan(row->held_out_loss))
        report_say(self, "step %" PRId64 "/%" PRId64 "  held-out loss %.4f", row->step, self->steps,
                   row->held_out_loss);
    return put_row(self, row, why);
}

void report_say(report *self, const char *format, ...)
{
    va_list arguments;
    if (self->bar_shown)
        fputs("\r\033[K", stdout);
    self->bar_shown = false;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

void report_costs(report *self, double peak_bytes)
{
    double percent[N_PHASES];
    for (int n = 0; n < N_PHASES; n++)
        percent[n] = 100 * self->seconds[n] / self->training_seconds;
    report_say(self,
               "of that time %.0f%% in attention's mask, %.0f%% in its forward, %.0f%% in its "
               "backward, %.0f%% in products, %.0f%% in the rest; %.2f GiB of memory",
               percent[PHASE_MASK], percent[PHASE_FORWARD], percent[PHASE_BACKWARD],
               percent[PHASE_PRODUCTS], percent[PHASE_REST], peak_bytes / 0x1p30);
}

bool report_close(report *self, bool good, failure *why)
{
    if (self->bar_shown)
        putchar('\n');
    bool closed = !self->log || fclose(self->log) == 0;
    self->log = NULL;
    if (good && !closed)
        return fail_to_write(why, self->log_path, errno);
    return good;
}

bool report_result(const char *path, const result_row *row, failure *why)
{
    FILE *file = fopen(path, "a");
    if (!file)
        return fail_to_write(why, path, errno);
    if (ftell(file) == 0)
        fputs("label,attention,context,steps,held_out_loss,mask_density,tokens_per_second\n", file);
    fprintf(file, "%s,%s,%" PRId64 ",%" PRId64, row->label, row->attention, row->context,
            row->steps);
    put_number(file, row->held_out_loss);
    put_number(file, row->density);
    put_number(file, row->tokens_per_second);
    fputc('\n', file);
    bool written = !ferror(file) && fflush(file) == 0;
    if (fclose(file) != 0 || !written)
        return fail_to_write(why, path, errno);
    return true;
}
