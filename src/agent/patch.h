/*
 * Leads libc's own discarding calls through the gate (gate.h): those that
 * malloc makes, say, which reach no symbol that could be exported in its
 * place.
 *
 * What is replaced is one instruction of five bytes, which ends right before
 * a "syscall" or stands at a known place, by a jump of five bytes: a thread
 * finds the one or the other. It is done only where the code is exactly what
 * is known, and only where the kernel lets it be written without taking the
 * right to execute it away for a moment.
 */
#ifndef USNAP_AGENT_PATCH_H
#define USNAP_AGENT_PATCH_H

/* From the constructor, when the flags are known. Sets AGENT_PATCHED when every call that malloc and
 * the threads of libc make is held back. */
void patch_start(void);

#endif
