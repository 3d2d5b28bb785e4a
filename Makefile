# uffd-snap. 'make help' lists the targets.
VERSION := 0.1.0

PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
LIBDIR  ?= $(PREFIX)/lib
INCDIR  ?= $(PREFIX)/include
MANDIR  ?= $(PREFIX)/share/man
DESTDIR ?=

CC      ?= gcc
B       ?= build
PKGS    := libzstd libarchive libxxhash jansson
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wformat=2 -Wundef \
           -Wpointer-arith -Wvla -Wno-unused-parameter $(if $(WERROR),-Werror)
CPPFLAGS += -D_GNU_SOURCE -DUSNAP_VERSION='"$(VERSION)"' -Iinclude -Isrc $(shell pkg-config --cflags $(PKGS))
ALL_CFLAGS = -std=gnu11 -fPIC -fvisibility=hidden -pthread -MMD -MP $(WARN) $(CFLAGS) $(SAN)
ALL_LDFLAGS = -pthread $(LDFLAGS) $(SAN)
LIBS    := $(shell pkg-config --libs $(PKGS))

SRCS    := $(wildcard src/*/*.c src/*/*/*.c)
OBJS    := $(SRCS:%.c=$(B)/%.o)

all: $(B)/uffd-snap

$(B)/uffd-snap: $(OBJS)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

clean:
	rm -rf $(B)

-include $(OBJS:.o=.d)
.PHONY: all clean
