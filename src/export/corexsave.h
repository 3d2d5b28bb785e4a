/*
 * The extended state of a thread in the layout that every debugger knows.
 *
 * XSAVE puts the components where CPUID says, and that differs: Intel leaves
 * room for MPX between AVX and AVX-512, AMD does not. An NT_X86_XSTATE note
 * does not tell which. gdb before 14 takes Intel's layout for granted ("section
 * .reg-xstate too small" elsewhere, and no %ymm registers), later ones guess
 * from the size and know some. Intel's is what all of them read.
 */
#ifndef USNAP_EXPORT_COREXSAVE_H
#define USNAP_EXPORT_COREXSAVE_H

#include <stdbool.h>
#include <stddef.h>

enum {
	CORE_XSAVE_MAX = 2696
};

/* Lays an XSAVE area out as Intel does. False when it is so already or its
 * layout is not one of those known: leave it as it is then. */
bool core_xsave_relay(const unsigned char *area, size_t len, unsigned char ret[CORE_XSAVE_MAX],
		      size_t *ret_len);

#endif
