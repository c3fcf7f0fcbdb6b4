/* status_table.c - prints the README's table of statuses from the header's list. */
#include <hpa/hpa.h>

#include <stdio.h>

int main(void)
{
#define PRINT_ROW(name, value, sentence) printf("| `%s` | %d | %s |\n", #name, value, sentence);
    HPA_STATUS_LIST(PRINT_ROW)
#undef PRINT_ROW
    return 0;
}
