#!/bin/bash
# Two weeks of a snapshot every five minutes, by the lines of the crontab we ship: what the rules say stays, and little else, and is not written anew each time.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
need python3 jq

faketime=$(find /usr/lib* -name libfaketimeMT.so.1 2>/dev/null | head -n 1)
[ -n "$faketime" ] || skip 'libfaketime is not installed'
echo 1000 >share
start_workload pagechange $((4 << 20))
export FAKETIME_LIB=$faketime TARGET=$started UFFD_SNAP_STORE=$PWD/store TZ=UTC
export CRONTAB=$TOP/scripts/examples/uffd-snap.cron
python3 - "$(times 30 336)" "$(times 20 5)" <<'END' || fail 'not as the rules say'
import datetime, json, os, re, signal, subprocess, sys

hours, step = int(sys.argv[1]), int(sys.argv[2])
snap = os.environ["UFFD_SNAP"]
store = os.environ["UFFD_SNAP_STORE"]

# The lines as they are, but for where the command is, whom it looks at, and how often.
lines = [l.split(None, 6)[6].strip() for l in open(os.environ["CRONTAB"]) if re.match(r"[*\d]", l)]
take, prune = [l.split()[1:] for l in lines if " snapshot " in l or " prune " in l]
at = take.index("redis-server")
take[at:at + 1] = [os.environ["TARGET"]]
rules = {k[7:]: int(v) for k, v in zip(prune, prune[1:]) if k.startswith("--keep-")}
assert rules.keys() == {"last", "hourly", "daily", "weekly"}, rules

def run(args, when, **more):
    env = dict(os.environ, LD_PRELOAD=os.environ["FAKETIME_LIB"], DONT_FAKE_MONOTONIC="1",
               NO_FAKE_STAT="1", FAKETIME=when.strftime("@%Y-%m-%d %H:%M:%S"))
    p = subprocess.run([snap] + args, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, timeout=60)
    if p.returncode:
        sys.exit("%s: uffd-snap %s: exit status %d: %s" % (when, " ".join(args), p.returncode, p.stdout))
    return p.stdout

def listed(when):
    images = json.loads(run(["list", "--json", "redis"], when))["images"]
    return {i["id"]: i for i in images}

def kept(images):
    order = sorted(images, key=lambda i: images[i]["t0_ms"])
    time = {i: datetime.datetime.fromtimestamp(images[i]["t0_ms"] / 1000, datetime.timezone.utc) for i in order}
    keep = set(order[-max(rules["last"], 1):])
    for rule, period in (("hourly", lambda t: t.strftime("%Y%m%d%H")), ("daily", lambda t: t.date()),
                         ("weekly", lambda t: t.isocalendar()[:2])):
        newest = {}
        for i in order:
            newest[period(time[i])] = i
        stay = sorted(newest.values(), key=lambda i: time[i])[-rules[rule]:]
        keep.update(stay)
        if len(newest) < rules[rule]:
            keep.add(order[0])
    return keep

def bytes_of(images):
    return sum(i["file_bytes"] for i in images.values())

def fulls(images):
    return sum(not i["needs"] for i in images.values())

def entries():
    return sum(len(d) + len(f) for _, d, f in os.walk(store))

begin = datetime.datetime(2026, 1, 5, 0, 0, 1)
taken = pruned = most = largest = read = written = 0
spare = 24
for minute in range(0, hours * 60, step):
    when = begin + datetime.timedelta(minutes=minute)
    os.kill(int(os.environ["TARGET"]), signal.SIGUSR1)  # something changes
    if run(take, when):
        sys.exit("a snapshot said something")
    taken += 1
    read += os.path.getsize(store + "/redis/latest")
    if minute % 60 or minute == 0:
        continue
    when += datetime.timedelta(minutes=2)
    before = listed(when)
    if run(prune, when):
        sys.exit("prune said something")
    after = listed(when)
    pruned += 1
    # By their instants: an image that is merged with those it refers to has a new id.
    instants = {before[i]["t0_ms"] for i in kept(before)}
    want = {i for i in after if after[i]["t0_ms"] in instants}
    wanted = len(want)
    if wanted != len(instants):
        sys.exit("%s: %d of %d images that a rule keeps are gone" % (when, len(instants) - wanted, len(instants)))
    # Else only what others need stays, and not much.
    needed = {n for i in after.values() for n in i["needs"]}
    if set(after) - want - needed:
        sys.exit("%s: nothing keeps %s" % (when, sorted(set(after) - want - needed)))
    if len(set(after) - want) > spare or len(after) > sum(rules.values()) + spare:
        sys.exit("%s: %d images, %d of them wanted" % (when, len(after), wanted))
    written += sum(i["file_bytes"] for k, i in after.items() if k not in before)
    # Merging takes no more room, but for blocks of the tar and what compresses worse in parts.
    size, was = bytes_of(after), bytes_of(before)
    if size > was * 1.02:
        sys.exit("%s: %d bytes have become %d" % (when, was, size))
    if fulls(after) > fulls(before):
        sys.exit("%s: %d full images have become %d" % (when, fulls(before), fulls(after)))
    most, largest = max(most, len(after)), max(largest, size)
    # latest, the lock, the users' lock, the secret, the name
    if entries() > len(after) + 6:
        sys.exit("%s: %d files for %d images" % (when, entries(), len(after)))
# At once, what the rules say and nothing else.
before = listed(when)
instants = {before[i]["t0_ms"] for i in kept(before)}
run(prune + ["--merge"], when)
after = listed(when)
if len(after) != len(instants) or {i["t0_ms"] for i in after.values()} != instants:
    sys.exit("%d images instead of %d" % (len(after), len(instants)))
# Merging waits until there is enough to be rid of: else each prune writes most of what stays, more than ten times what the
# snapshots do. So it is less than twice that in two days, and 2.3 times in two weeks.
if written > (2 if hours < 48 else 3) * read:
    sys.exit("prune wrote %d KiB, the snapshots %d" % (written >> 10, read >> 10))
run(["verify", "-q", "--all"], when)
print("%d snapshots, %d prunes: %d images stay (at most %d at a time), %d KiB (at most %d)" %
      (taken, pruned, len(after), most, size >> 10, largest >> 10))
END
kill -0 "$started"
