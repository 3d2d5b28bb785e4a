#include "export/corexsave.h"

#include <stdint.h>
#include <string.h>

#include "common/le.h"
#include "common/util.h"

/* Bits of XCR0 (Intel SDM volume 1, 13.1). The kernel notes XCR0 in the bytes
 * of the legacy area that are left to software (asm/fpu/types.h). */
#define XCR0_OFFSET 464
#define XCR0_MPX ((uint64_t)3 << 3)
#define XCR0_AVX512 ((uint64_t)7 << 5)
#define XCR0_PKRU ((uint64_t)1 << 9)
#define XCR0_KNOWN ((uint64_t)0x2e7)

#define LEGACY_BYTES 832 /* FXSAVE, header and AVX: at the same place everywhere */

struct component {
	uint16_t bytes, from, to;
};

/* AVX-512: opmask, upper halves of zmm0-15, zmm16-31; then PKRU. */
static const struct component amd_avx512[] = {
	{64, 832, 1088},
	{512, 896, 1152},
	{1024, 1408, 1664},
	{8, 2432, 2688},
};
static const struct component amd_pkru[] = {{8, 832, 2688}};

bool core_xsave_relay(const unsigned char *area, size_t len, unsigned char ret[CORE_XSAVE_MAX],
		      size_t *ret_len)
{
	if (len < LEGACY_BYTES)
		return false;

	uint64_t xcr0 = le_get64(area + XCR0_OFFSET);
	bool avx512 = (xcr0 & XCR0_AVX512) == XCR0_AVX512, pkru = xcr0 & XCR0_PKRU;
	const struct component *c;
	size_t n;

	if (xcr0 & ~XCR0_KNOWN || xcr0 & XCR0_MPX)
		return false;
	if (avx512 && len == (pkru ? 2440u : 2432u)) {
		c = amd_avx512;
		n = pkru ? 4 : 3;
	} else if (!(xcr0 & XCR0_AVX512) && pkru && len == 840) {
		c = amd_pkru;
		n = 1;
	} else {
		return false;
	}

	memset(ret, 0, CORE_XSAVE_MAX);
	memcpy(ret, area, LEGACY_BYTES);
	for (size_t i = 0; i < n; i++)
		memcpy(ret + c[i].to, area + c[i].from, c[i].bytes);
	*ret_len = pkru ? 2696 : 2688;
	return true;
}
