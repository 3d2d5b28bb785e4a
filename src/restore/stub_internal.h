/* What the stub's code and the restorer agree on; stub_code.c has the layout. */
#ifndef USNAP_RESTORE_STUB_INTERNAL_H
#define USNAP_RESTORE_STUB_INTERNAL_H

#include <stdint.h>

extern const unsigned char usnap_stub_code[], usnap_stub_syscall[], usnap_stub_end[];

enum stub_state {
	STUB_IDLE = 0,
	STUB_WORK = 1,
	STUB_DONE = 2
};

#endif
