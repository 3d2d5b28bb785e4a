/* Symbols of the objects that are loaded, looked up without the dynamic linker's help: dlsym() may
 * allocate, and finds the agent's own. */
#ifndef USNAP_AGENT_ELFSYM_H
#define USNAP_AGENT_ELFSYM_H

#include <link.h>
#include <stdint.h>

struct elf_symbol {
	uint64_t addr, size;
};

/* A defined function. 1 or 0. */
int elfsym_find(const struct dl_phdr_info *info, const char *name, struct elf_symbol *ret);

#endif
