/* Ctrl-C and kill, noticed between two steps. */
#ifndef DEMO_INTERRUPT_H
#define DEMO_INTERRUPT_H

/* From now on the first SIGINT or SIGTERM is only noted; the next one ends the program. */
void interrupt_catch(void);

/* The signal that came, or 0. */
int interrupt_signal(void);

#endif
