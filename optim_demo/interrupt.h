/* Ctrl-C and kill, noticed between two steps. */
#ifndef DEMO_INTERRUPT_H
#define DEMO_INTERRUPT_H

/* From now on SIGINT and SIGTERM are only noted. One that comes seconds after the first ends the
 * program: somebody has lost patience. (At once they come twice from such as timeout, which signals
 * the child and then the whole group.) */
void interrupt_catch(void);

/* The signal that came, or 0. */
int interrupt_signal(void);

#endif
