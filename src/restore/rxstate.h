/*
 * The extended state of a thread (XSAVE area) laid out for another machine.
 *
 * An area holds components (Intel SDM volume 1, 13.4) at offsets that CPUID
 * tells and that differ: Intel leaves room for MPX between AVX and AVX-512, AMD
 * does not. An NT_X86_XSTATE note does not say; the kernel notes in it which
 * components there are (XCR0), and with its length that tells the layout.
 */
#ifndef USNAP_RESTORE_RXSTATE_H
#define USNAP_RESTORE_RXSTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	XSTATE_NR = 63, /* components: bits of XCR0 */
	XSTATE_MAX_BYTES = 1 << 16
};

struct xlayout {
	uint64_t features; /* XCR0 */
	size_t size; /* bytes of the whole area */
	struct {
		uint32_t offset, size;
	} c[XSTATE_NR];
};

/* Of this machine. False: it has no XSAVE. */
bool xlayout_here(struct xlayout *ret);

/* Components that the area has and this machine has not. */
struct xmissing {
	uint64_t known; /* the program may have seen them */
	uint64_t used; /* they hold something */
};

/* Lays an area (or the 512 bytes of FXSAVE alone) out for here: to has
 * here->size bytes. 0, or -EBADMSG with *ret_why (static) when it is no sound
 * area. Adds to missing what is lost. */
int xstate_relay(const unsigned char *area, size_t len, const struct xlayout *here,
		 unsigned char *to, struct xmissing *missing, const char **ret_why);

/* "avx512" and the like, of the lowest bit that is set. */
const char *xfeature_name(uint64_t features);

#endif
