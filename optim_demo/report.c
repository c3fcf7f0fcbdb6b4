#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
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
    if (first_step == 0)
        fputs("step,tokens,loss,held_out_loss,learning_rate,gradient_norm,mask_density,"
              "tokens_per_second,seconds\n",
              self->log);
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

bool report_step(report *self, const report_row *row, double seconds, failure *why)
{
    self->training_seconds += seconds;
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
