/* Parts of the restore that are not there yet: weak, replaced by the real ones. */
#include <errno.h>
#include <string.h>

#define WEAK __attribute__((weak))
