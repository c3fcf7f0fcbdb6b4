#include "interrupt.h"

#include <signal.h>

/* A signal handler has no other way to say something. */
static volatile sig_atomic_t noted;

static void note(int number)
{
    noted = number;
}

void interrupt_catch(void)
{
    struct sigaction action = {.sa_handler = note, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
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
