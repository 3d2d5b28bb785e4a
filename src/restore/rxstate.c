#include "restore/rxstate.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>

#include "common/le.h"
#include "common/util.h"

/* The FXSAVE area; its last bytes are software's: the kernel puts XCR0 there
 * (asm/fpu/types.h). */
#define LEGACY_BYTES 512
#define LEGACY_REGISTERS 464
#define HEADER_END 576
#define MXCSR_OFFSET 24
#define MXCSR_BITS 0xffffu

#define FEATURES_LEGACY 3u /* x87, SSE */
#define FEATURES_MPX (3u << 3)
#define FEATURE_PKRU (1u << 9)
/* What Linux gives a thread at first (arch/x86/mm/pkeys.c): only key 0 may be
 * used. */
#define PKRU_DEFAULT 0x55555554u

struct place {
	unsigned bit;
	uint32_t offset, size;
};

/* AVX, MPX, AVX-512, PKRU, AMX. */
static const struct place intel[] = {
	{2, 576, 256},	 {3, 960, 64}, {4, 1024, 64},  {5, 1088, 64},	 {6, 1152, 512},
	{7, 1664, 1024}, {9, 2688, 8}, {17, 2752, 64}, {18, 2816, 8192},
};
static const struct place amd[] = {
	{2, 576, 256}, {5, 832, 64}, {6, 896, 512}, {7, 1408, 1024}, {9, 2432, 8},
};
static const struct place amd_plain[] = {{2, 576, 256}, {9, 832, 8}};

static uint64_t read_xcr0(void)
{
	uint32_t a, d;

	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (uint64_t)d << 32 | a;
}

bool xlayout_here(struct xlayout *ret)
{
	unsigned a, b, c, d;

	*ret = (struct xlayout){0};
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) ||
	    !__get_cpuid_count(0xd, 0, &a, &b, &c, &d))
		return false;
	ret->features = read_xcr0();
	ret->size = b; /* for the features of XCR0 */
	for (unsigned i = 2; i < XSTATE_NR; i++) {
		if (!(ret->features >> i & 1) || !__get_cpuid_count(0xd, i, &a, &b, &c, &d))
			continue;
		ret->c[i].size = a;
		ret->c[i].offset = b;
	}
	return ret->size >= HEADER_END && ret->size <= XSTATE_MAX_BYTES;
}

/* Whether an area with these features is as long as this layout makes it. */
static bool layout_fits(const struct xlayout *l, uint64_t features, size_t len)
{
	size_t end = HEADER_END;

	for (unsigned i = 2; i < XSTATE_NR; i++) {
		if (!(features >> i & 1))
			continue;
		if (!l->c[i].size)
			return false;
		end = MAX(end, (size_t)l->c[i].offset + l->c[i].size);
	}
	return end == len;
}

static bool table_fits(const struct place *t, size_t n, uint64_t features, size_t len,
		       struct xlayout *ret)
{
	*ret = (struct xlayout){.features = features, .size = len};
	for (size_t i = 0; i < n; i++) {
		ret->c[t[i].bit].offset = t[i].offset;
		ret->c[t[i].bit].size = t[i].size;
	}
	return layout_fits(ret, features, len);
}

static bool find_layout(const struct xlayout *here, uint64_t features, size_t len,
			struct xlayout *ret)
{
	if (layout_fits(here, features, len)) {
		*ret = *here;
		return true;
	}
	return table_fits(intel, ARRAY_SIZE(intel), features, len, ret) ||
	       table_fits(amd, ARRAY_SIZE(amd), features, len, ret) ||
	       table_fits(amd_plain, ARRAY_SIZE(amd_plain), features, len, ret);
}

static bool all_zero(const unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i])
			return false;
	return true;
}

/* The features of an area and those that hold something; why it is unsound, or
 * NULL. */
static const char *read_header(const unsigned char *area, size_t len, uint64_t *ret_features,
			       uint64_t *ret_used)
{
	if (le_get32(area + MXCSR_OFFSET) & ~MXCSR_BITS)
		return "MXCSR has bits that no CPU knows";
	*ret_features = *ret_used = FEATURES_LEGACY;
	if (len == LEGACY_BYTES)
		return NULL;
	*ret_features = le_get64(area + LEGACY_REGISTERS);
	*ret_used = le_get64(area + LEGACY_BYTES);
	if ((*ret_features & FEATURES_LEGACY) != FEATURES_LEGACY || *ret_features >> XSTATE_NR)
		return "its XCR0 is impossible";
	if (*ret_used & ~*ret_features)
		return "it holds what its XCR0 excludes";
	if (!all_zero(area + LEGACY_BYTES + 8, HEADER_END - LEGACY_BYTES - 8))
		return "its header has reserved bits";
	return NULL;
}

int xstate_relay(const unsigned char *area, size_t len, const struct xlayout *here,
		 unsigned char *to, struct xmissing *missing, const char **ret_why)
{
	uint64_t features, used, pkru = PKRU_DEFAULT;
	struct xlayout from;

	*ret_why = "its length is impossible";
	if (len != LEGACY_BYTES && len < HEADER_END)
		return -EBADMSG;
	*ret_why = read_header(area, len, &features, &used);
	if (*ret_why)
		return -EBADMSG;
	if (len == LEGACY_BYTES) {
		from = (struct xlayout){0};
	} else if (!find_layout(here, features, len, &from)) {
		*ret_why = "it is laid out in an unknown way";
		return -EBADMSG;
	}

	/* Without protection keys all memory has key 0; no kernel has MPX any more.
   */
	uint64_t lost = features & ~here->features & ~(uint64_t)(FEATURE_PKRU | FEATURES_MPX);
	missing->known |= lost;
	missing->used |= lost & used;
	used &= here->features;

	memset(to, 0, here->size);
	memcpy(to, area, LEGACY_REGISTERS);
	for (unsigned i = 2; i < XSTATE_NR; i++)
		if (used >> i & 1)
			memcpy(to + here->c[i].offset, area + from.c[i].offset,
			       MIN(here->c[i].size, from.c[i].size));
	/* The kernel takes its absence for a PKRU of 0. */
	if (here->features & ~features & FEATURE_PKRU) {
		memcpy(to + here->c[9].offset, &pkru, here->c[9].size < 8 ? 4 : 8);
		used |= FEATURE_PKRU;
	}
	memcpy(to + LEGACY_BYTES, &used, sizeof(used));
	return 0;
}

const char *xfeature_name(uint64_t features)
{
	static const struct {
		uint64_t bits;
		const char *name;
	} names[] = {
		{1u << 2, "AVX"},  {7u << 5, "AVX-512"},	{1u << 9, "protection keys"},
		{3u << 17, "AMX"}, {1u << 19, "APX registers"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (features & names[i].bits)
			return names[i].name;
	return "an extension of the CPU that is not known";
}
