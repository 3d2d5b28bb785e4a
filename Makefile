# uffd-snap. 'make help' lists the targets.
VERSION   := 0.1.0
SOVERSION := 0

PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
LIBDIR  ?= $(PREFIX)/lib
INCDIR  ?= $(PREFIX)/include
MANDIR  ?= $(PREFIX)/share/man
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
EXAMPLEDIR  ?= $(PREFIX)/share/doc/uffd-snap/examples
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/site-functions
DESTDIR ?=

ifeq ($(origin CC),default)
CC      := gcc
endif
CLANG   ?= clang
PKG_CONFIG   ?= pkg-config
CLANG_FORMAT ?= clang-format
B       ?= build
# One name for a directory, however it is given: what an object depends on is noted under its name.
override B := $(abspath $(B))
PKGS    := libzstd libarchive libxxhash jansson
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wformat=2 -Wundef \
           -Wpointer-arith -Wvla -Wno-unused-parameter $(if $(WERROR),-Werror)

# Criterion's macros are not written for these.
TEST_WARN := -Wno-missing-prototypes

PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS))
PKG_LIBS   := $(shell $(PKG_CONFIG) --libs $(PKGS))
ALL_CPPFLAGS = -D_GNU_SOURCE -DUSNAP_VERSION='"$(VERSION)"' -Iinclude -Isrc $(PKG_CFLAGS) $(CPPFLAGS)
ALL_CFLAGS = -std=gnu11 -fPIC -fvisibility=hidden -pthread -MMD -MP $(WARN) $(CFLAGS) $(SAN)
ALL_LDFLAGS = -pthread $(LDFLAGS) $(SAN)
LIBS    = $(PKG_LIBS)

ASAN    := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
TSAN    := -fsanitize=thread -fno-omit-frame-pointer
FUZZSAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

# The agent is a library of its own, loaded into other people's programs.
AGENT_SRCS := $(wildcard src/agent/*.c)
AGENT_OBJS := $(AGENT_SRCS:%.c=$(B)/%.o) $(patsubst %.S,$(B)/%.o,$(wildcard src/agent/*.S))
# The gate once more, as bytes that the command puts into a process without an agent.
BLOB_OBJS := $(B)/src/agent/blob-gate.o $(B)/src/agent/blob-gatecall.o
SRCS     := $(filter-out $(AGENT_SRCS),$(wildcard src/*/*.c src/*/*/*.c))
OBJS     := $(SRCS:%.c=$(B)/%.o)
LIB_OBJS := $(filter $(B)/src/common/% $(B)/src/image/%,$(OBJS))
LIB_MAP  := $(wildcard src/image/libuffd-snap.map)
LIB_SO   := libuffd-snap.so.$(VERSION)
LIB_SONAME := libuffd-snap.so.$(SOVERSION)
AGENT_SO := libuffd-snap-agent.so

UNIT      := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_*.c))
WORKLOADS := $(patsubst %.c,$(B)/%,$(wildcard tests/workloads/*.c))
BENCHES   := $(patsubst %.c,$(B)/%,$(wildcard tests/bench/*.c))
CHECKERS  := $(patsubst %.c,$(B)/%,$(wildcard tests/checkers/*.c))
STRESSES  := $(patsubst %.c,$(B)/%,$(wildcard tests/stress/*.c))
FUZZERS   := $(patsubst %.c,$(B)/%,$(wildcard tests/fuzz/fuzz_*.c))
MANS      := $(wildcard man/*.[1357])
EXAMPLES  := $(wildcard scripts/examples/*)

FUZZ_SECONDS ?= 600

all: $(B)/uffd-snap $(B)/libuffd-snap.so $(B)/libuffd-snap.a $(B)/$(AGENT_SO) ## build command and libraries

# --- objects -----------------------------------------------------------------

# Holds the flags of the last build: other flags, everything is built again.
FLAGS := $(B) $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)
ifneq ($(FLAGS),$(file <$(B)/flags))
.PHONY: $(B)/flags
endif
$(B)/flags:
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(FLAGS))' >$@

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

$(B)/%.o: %.S $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) -MMD -MP -c -o $@ $<

$(B)/tests/%.o: ALL_CFLAGS += $(TEST_WARN)

# --- command and library -----------------------------------------------------

$(B)/uffd-snap: $(OBJS) $(BLOB_OBJS)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

$(B)/$(LIB_SO): $(LIB_OBJS) $(LIB_MAP)
	$(CC) -shared $(ALL_LDFLAGS) -Wl,-soname,$(LIB_SONAME) $(if $(LIB_MAP),-Wl$(comma)--version-script=$(LIB_MAP)) \
		-o $@ $(LIB_OBJS) $(LIBS)

$(B)/$(LIB_SONAME): $(B)/$(LIB_SO)
	ln -sf $(LIB_SO) $@

$(B)/libuffd-snap.so: $(B)/$(LIB_SONAME)
	ln -sf $(LIB_SONAME) $@

# One object whose hidden symbols are local, so that a program linked with
# the archive meets only the public names.
$(B)/libuffd-snap.a: $(LIB_OBJS)
	$(LD) -r -o $(B)/libuffd-snap.o $^
	objcopy --localize-hidden $(B)/libuffd-snap.o
	rm -f $@
	ar rcs $@ $(B)/libuffd-snap.o

# Loaded into programs that know nothing of sanitizers; and never unloaded, since code is led to it.
# What runs in the place of a system call leaves all but a few registers as they are.
$(AGENT_OBJS): override SAN :=
$(B)/src/agent/gate.o $(B)/src/agent/gatecall.o: ALL_CFLAGS += -fno-stack-protector -mgeneral-regs-only

BLOB_CFLAGS = $(filter-out -g,$(ALL_CFLAGS)) -fno-stack-protector -mgeneral-regs-only -fno-jump-tables \
	-fno-asynchronous-unwind-tables -O2
$(BLOB_OBJS): override SAN :=
$(B)/src/agent/blob-%.o: src/agent/%.c $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) -DGATE_BLOB $(BLOB_CFLAGS) -c -o $@ $<
	objcopy --rename-section .text=gateblob --prefix-symbols=blob_ $@
	@! objdump -h $@ | grep -E '\.(rodata|data\.rel)' || { echo "$@ refers to data of its own" >&2; false; }
$(B)/src/agent/blob-%.o: src/agent/%.S $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) -DGATE_BLOB -MMD -MP -c -o $@ $<
	objcopy --prefix-symbols=blob_ $@

$(B)/$(AGENT_SO): $(AGENT_OBJS) src/agent/agent.map
	$(CC) -shared -pthread $(LDFLAGS) -Wl,-soname,$(AGENT_SO) -Wl,--version-script=src/agent/agent.map \
		-Wl,-z,defs,-z,now,-z,relro,-z,nodelete -o $@ $(AGENT_OBJS)

comma := ,

# --- tests -------------------------------------------------------------------

# Everything but main(), for tests to link what they need of.
$(B)/uffd-snap-test.a: $(filter-out $(B)/src/cli/main.o,$(OBJS)) $(BLOB_OBJS)
	rm -f $@
	ar rcsT $@ $^

$(UNIT): $(B)/tests/unit/%: $(B)/tests/unit/%.o $(B)/uffd-snap-test.a
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(shell $(PKG_CONFIG) --libs criterion) $(LIBS) -lm

$(B)/tests/unit/test_gate: $(B)/src/agent/gate.o $(B)/src/agent/gatecall.o

$(WORKLOADS): $(B)/tests/workloads/%: $(B)/tests/workloads/%.o
	$(CC) $(ALL_LDFLAGS) -o $@ $^ -lm

$(BENCHES) $(CHECKERS) $(STRESSES): $(B)/%: $(B)/%.o $(B)/uffd-snap-test.a
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lm

$(FUZZERS): $(B)/%: $(B)/%.o $(B)/uffd-snap-test.a
	$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS) -lm

unit: $(UNIT)
tests: unit $(WORKLOADS) $(BENCHES) $(CHECKERS) $(STRESSES) ## build the test programs
stress-programs: $(STRESSES)
fuzzers: $(FUZZERS)
objects: $(OBJS) $(AGENT_OBJS) $(UNIT:=.o) $(WORKLOADS:=.o) $(BENCHES:=.o) $(CHECKERS:=.o) $(STRESSES:=.o)

check: ## unit and end-to-end tests (tests/run alone runs everything)
	B=$(B) tests/run unit/ e2e/

stress: ## stress programs (TSan), and end-to-end tests with all their repetitions
	B=$(B) STRESS_SECONDS=$${STRESS_SECONDS:-120} UFFD_SNAP_FULL=1 tests/run stress/ e2e/

bench: ## benchmarks, full length
	B=$(B) BENCH_FULL=1 tests/run bench/

fuzz: fuzz-build ## every fuzzer for FUZZ_SECONDS (600)
	B=$(B) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/run fuzz/

lint: ## warnings of both compilers, format, static analysis, manuals, scripts, includes
	B=$(B) scripts/lint

format: ## lay out every C file as .clang-format says
	$(CLANG_FORMAT) -i $(SRCS) $(AGENT_SRCS) $(wildcard src/*/*.h src/*/*/*.h include/*.h tests/*/*.[ch])

# --- other builds: same sources, own directories -------------------------------

asan: ## build/asan: command and unit tests with ASan and UBSan
	+$(MAKE) B=$(B)/asan CFLAGS="-O1 -g" SAN="$(ASAN)" all unit

tsan: ## build/tsan: command and stress programs with TSan
	+$(MAKE) B=$(B)/tsan SAN="$(TSAN)" all stress-programs

fuzz-build: ## build/fuzz: the fuzzers (clang)
	+$(MAKE) B=$(B)/fuzz CC=$(CLANG) CFLAGS="-O1 -g" SAN="-fsanitize=fuzzer-no-link $(FUZZSAN)" fuzzers

# --- install -------------------------------------------------------------------

install: all ## install below DESTDIR and PREFIX (/usr/local)
	install -D -m 755 $(B)/uffd-snap "$(DESTDIR)$(BINDIR)/uffd-snap"
	install -D -m 644 $(B)/$(LIB_SO) "$(DESTDIR)$(LIBDIR)/$(LIB_SO)"
	ln -sf $(LIB_SO) "$(DESTDIR)$(LIBDIR)/$(LIB_SONAME)"
	ln -sf $(LIB_SONAME) "$(DESTDIR)$(LIBDIR)/libuffd-snap.so"
	install -m 644 $(B)/libuffd-snap.a "$(DESTDIR)$(LIBDIR)/libuffd-snap.a"
	install -m 644 $(B)/$(AGENT_SO) "$(DESTDIR)$(LIBDIR)/$(AGENT_SO)"
	install -d "$(DESTDIR)$(LIBDIR)/pkgconfig"
	printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$(LIBDIR)' 'includedir=$(INCDIR)' '' \
		'Name: libuffd-snap' 'Description: reader of uffd-snap process images' \
		'Version: $(VERSION)' \
		'Libs: -L$${libdir} -luffd-snap' 'Libs.private: $(PKG_LIBS) -pthread' 'Cflags: -I$${includedir}' \
		>"$(DESTDIR)$(LIBDIR)/pkgconfig/libuffd-snap.pc"
	install -D -m 644 include/uffd-snap.h "$(DESTDIR)$(INCDIR)/uffd-snap.h"
	for m in $(MANS); do install -D -m 644 "$$m" "$(DESTDIR)$(MANDIR)/man$${m##*.}/$${m##*/}" || exit 1; done
	install -D -m 644 scripts/completions/uffd-snap.bash "$(DESTDIR)$(BASHCOMPDIR)/uffd-snap"
	install -D -m 644 scripts/completions/_uffd-snap "$(DESTDIR)$(ZSHCOMPDIR)/_uffd-snap"
	install -d "$(DESTDIR)$(EXAMPLEDIR)"
	for e in $(EXAMPLES); do sed 's|/usr/local/bin/|$(BINDIR)/|; s|/usr/local/lib|$(LIBDIR)|' "$$e" >"$(DESTDIR)$(EXAMPLEDIR)/$${e##*/}" && \
		chmod 644 "$(DESTDIR)$(EXAMPLEDIR)/$${e##*/}" || exit 1; done

uninstall: ## remove what install put there
	rm -f "$(DESTDIR)$(BINDIR)/uffd-snap" "$(DESTDIR)$(LIBDIR)/$(LIB_SO)" \
		"$(DESTDIR)$(LIBDIR)/$(LIB_SONAME)" "$(DESTDIR)$(LIBDIR)/libuffd-snap.so" \
		"$(DESTDIR)$(LIBDIR)/libuffd-snap.a" "$(DESTDIR)$(LIBDIR)/$(AGENT_SO)" \
		"$(DESTDIR)$(LIBDIR)/pkgconfig/libuffd-snap.pc" \
		"$(DESTDIR)$(INCDIR)/uffd-snap.h" "$(DESTDIR)$(BASHCOMPDIR)/uffd-snap" \
		"$(DESTDIR)$(ZSHCOMPDIR)/_uffd-snap"
	for e in $(EXAMPLES); do rm -f "$(DESTDIR)$(EXAMPLEDIR)/$${e##*/}"; done
	for m in $(MANS); do rm -f "$(DESTDIR)$(MANDIR)/man$${m##*.}/$${m##*/}"; done

clean: ## remove build/
	rm -rf $(B)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

.SECONDARY:
.DELETE_ON_ERROR:
-include $(OBJS:.o=.d) $(AGENT_OBJS:.o=.d) $(addsuffix .d,$(UNIT) $(WORKLOADS) $(BENCHES) $(CHECKERS) $(STRESSES) $(FUZZERS))
.PHONY: all unit tests stress-programs fuzzers objects check stress bench fuzz lint format asan tsan fuzz-build \
	install uninstall clean help
