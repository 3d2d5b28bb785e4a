#!/bin/bash
# bash, python3, node, java, gcc and git say and do the same with the agent preloaded.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"

need bash python3 node java javac gcc git

# It is there at all.
LD_PRELOAD=$AGENT grep -q libuffd-snap-agent /proc/self/maps || fail 'the agent is not loaded'

# ---- bash -------------------------------------------------------------------------

cat >in.bash <<'END'
trap 'echo at the end' EXIT
trap 'echo usr1' USR1
kill -USR1 $$
words=(one "two words" three)
printf '%s|' "${words[@]}" "${#words[@]}"
echo $((3 ** 20)) $(echo inner $(echo innermost))
for i in {1..50}; do (exit $i) & started+=($!); done
sum=0
for p in "${started[@]}"; do wait $p; sum=$((sum + $?)); done
echo sum $sum
sort -r < <(printf '%s\n' a c b) | tee copy | cat -n
cat <<X
here $sum
X
declare -A m=([k]=v); echo "${m[k]}"
text=; for i in {1..3000}; do text+=$i; done; echo ${#text}
coproc cat; echo through >&"${COPROC[1]}"; read -r line <&"${COPROC[0]}"; echo "$line"
ulimit -n
ls /proc/self/fd | wc -l
no-such-command-here
{ (kill -SEGV $BASHPID); } 2>/dev/null; echo $?
exit 3
END
expected=3 unchanged bash bash "$PWD/in.bash"
# Children find nothing of it in their environment.
run_in work env.plain bash -c 'env | grep -v ^_= | sort'
run_in work env.agent env LD_PRELOAD="$AGENT" UFFD_SNAP_NAME=x bash -c 'env | grep -v ^_= | sort'
alike 'the environment of children' env.plain env.agent

# ---- python3 ----------------------------------------------------------------------

cat >in.py <<'END'
import concurrent.futures, ctypes, gc, hashlib, mmap, multiprocessing, os, signal, subprocess, sys, tempfile, threading

def work(n):
    return hashlib.sha256(bytes(n) * 100).hexdigest()[:8]

if __name__ == "__main__":
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        print(list(pool.map(work, range(20))))
    for how in "fork", "spawn":
        with multiprocessing.get_context(how).Pool(2) as pool:
            print(how, pool.map(work, range(5)))
    print(subprocess.run(["sh", "-c", "echo out; echo err >&2; exit 9"], capture_output=True))
    with mmap.mmap(-1, 1 << 20) as m:
        m[:5] = b"hello"
        m.madvise(mmap.MADV_DONTNEED)
        print(m[:5])
        m.resize(1 << 16)
        print(len(m))
    big = [bytes(100000) for _ in range(500)]
    del big
    gc.collect()
    print(ctypes.CDLL(None).strlen(b"twelve chars"))
    print(sorted(os.listdir("/proc/self/fd"))[:3])
    signal.signal(signal.SIGALRM, lambda *a: print("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 1)
    signal.pause()
    pid = os.fork()
    if pid == 0:
        os._exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    sys.stdout.flush()
    raise SystemExit("the end")
END
expected=1 unchanged python3 python3 "$PWD/in.py"

# ---- node, java -----------------------------------------------------------------------

cat >in.js <<'END'
const { Worker, isMainThread, parentPort } = require("worker_threads");
const { execFileSync, spawnSync } = require("child_process");
const crypto = require("crypto"), zlib = require("zlib"), fs = require("fs");
if (!isMainThread) {
	let sum = 0;
	for (let i = 0; i < 200; i++) sum += Buffer.alloc(100000, i)[99999];
	parentPort.postMessage(sum);
} else {
	const text = zlib.gunzipSync(zlib.gzipSync("x".repeat(1e6))).toString();
	console.log(text.length, crypto.createHash("sha256").update(text).digest("hex"));
	console.log(execFileSync("sh", ["-c", "echo child"]).toString());
	console.log(spawnSync("sh", ["-c", "exit 4"]).status);
	console.error("to stderr");
	let kept = [];
	for (let i = 0; i < 300000; i++) { kept.push({ i }); if (kept.length > 50000) kept = []; }
	const workers = [1, 2, 3].map(() => new Promise((done) => new Worker(__filename).on("message", done)));
	Promise.all(workers).then((sums) => {
		console.log(sums);
		process.exit(6);
	});
}
END
expected=6 unchanged node node "$PWD/in.js"

cat >In.java <<'END'
import java.util.*;
import java.util.stream.*;
public class In {
	public static void main(String[] a) throws Exception {
		System.out.println(IntStream.range(0, 1000000).parallel().mapToLong(i -> i * 31L).sum());
		List<byte[]> kept = new ArrayList<>();
		for (int i = 0; i < 3000; i++) { kept.add(new byte[100000]); if (kept.size() > 100) kept.clear(); }
		System.gc();
		Process p = new ProcessBuilder("sh", "-c", "echo child; exit 4").start();
		System.out.println(new String(p.getInputStream().readAllBytes()) + p.waitFor());
		Thread[] t = new Thread[20];
		for (int i = 0; i < 20; i++) { t[i] = new Thread(() -> { byte[] b = new byte[1000000]; }); t[i].start(); }
		for (Thread x : t) x.join();
		System.err.println("to stderr");
		System.exit(8);
	}
}
END
javac -d . In.java
expected=8 unchanged java java -Xmx64m -cp "$PWD" In

# ---- gcc, git --------------------------------------------------------------------------

cat >in.sh <<END
cat >one.c <<'X'
#include <stdio.h>
int unused_one(void) { int x; return 0; }
int main(void) { printf("%d\n", 6 * 7); return 2; }
X
gcc -O2 -g -Wall -pthread -c one.c -o one.o
gcc -flto -O2 one.c -o lto
gcc one.o -o one && ./one
echo \$?
sha256sum one.o one lto
gcc -c missing.c
END
expected=1 unchanged gcc bash "$PWD/in.sh"

cat >in.git <<'END'
export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b HOME=$PWD
git init -q -b main one
cd one
for i in 1 2 3 4 5; do
	seq $((i * 1000)) >file$i
	git add .
	git commit -m "commit $i"
done
git checkout -q -b side HEAD~2
echo changed >file1
git commit -q -a -m side
git merge -m merged main
git log --oneline --graph --stat
git gc --quiet
git fsck --strict
git clone -q . ../two
cd ../two
git log -1 --format=%H
git diff HEAD~1 | sha256sum
git rebase -q HEAD~1 HEAD
git no-such-command
END
expected=1 unchanged git bash "$PWD/in.git"
