#include "interrupt.h"

#include <signal.h>
#include <time.h>

/* A signal handler has no other way to say something. */
static volatile sig_atomic_t noted;
static volatile time_t noted_at;

static void note(int number)
{
    time_t now = time(NULL);
    if (noted == 0) {
        noted_at = now;
        noted = number;
    } else if (now > noted_at + 1) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

void interrupt_catch(void)
{
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* A file larger than the limit is an error of write like any other. */
    signal(SIGXFSZ, SIG_IGN);
}

int interrupt_signal(void)
{
    return noted;
}
