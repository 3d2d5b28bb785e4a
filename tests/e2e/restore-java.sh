#!/bin/bash
# A multi-threaded java server comes back; its collector, its pools and its timers go on.
# timeout: 150
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-restore.sh"
. "$TESTS/lib-programs.sh"

need java javac python3 jq
n=$(times 1 20)

cat >Work.java <<'END'
import java.io.*;
import java.net.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
public class Work {
	static final AtomicLong requests = new AtomicLong(), rounds = new AtomicLong(), ticks = new AtomicLong();
	static final AtomicLong fired = new AtomicLong(), wrong = new AtomicLong();
	static final ConcurrentHashMap<Integer, byte[]> kept = new ConcurrentHashMap<>();
	static long round(int seed) {
		Map<Integer, byte[]> m = new HashMap<>();
		long sum = 0;
		for (int i = 0; i < 5000; i++) { byte[] b = new byte[512]; Arrays.fill(b, (byte) (i * seed)); m.put(i, b); }
		for (Map.Entry<Integer, byte[]> e : m.entrySet()) sum += e.getKey() * 31L + e.getValue()[511];
		return sum;
	}
	static void answer(Socket s, ScheduledExecutorService timers) {
		try (s) {
			BufferedReader in = new BufferedReader(new InputStreamReader(s.getInputStream()));
			String first = in.readLine();
			while (!in.readLine().isEmpty()) { }
			requests.incrementAndGet();
			if (first.startsWith("GET /arm")) {
				long due = System.nanoTime() + 1000000000L;
				timers.schedule(() -> {
					if (System.nanoTime() < due) wrong.incrementAndGet();
					fired.incrementAndGet();
				}, 1, TimeUnit.SECONDS);
			}
			for (int i = 0; i < 20000; i += 97) if (kept.get(i)[i % 100] != (byte) i) wrong.incrementAndGet();
			long gcs = 0;
			for (var b : java.lang.management.ManagementFactory.getGarbageCollectorMXBeans()) gcs += b.getCollectionCount();
			String body = String.format("{\"requests\":%d,\"rounds\":%d,\"ticks\":%d,\"fired\":%d,\"wrong\":%d,\"gcs\":%d}",
				requests.get(), rounds.get(), ticks.get(), fired.get(), wrong.get(), gcs);
			s.getOutputStream().write(("HTTP/1.0 200 OK\r\nContent-Length: " + body.length() + "\r\n\r\n" + body).getBytes());
		} catch (IOException e) { }
	}
	public static void main(String[] args) throws Exception {
		for (int i = 0; i < 20000; i++) { byte[] b = new byte[100]; Arrays.fill(b, (byte) i); kept.put(i, b); }
		for (int t = 1; t <= 3; t++) {
			final int seed = t;
			Thread d = new Thread(() -> {
				long want = round(seed);
				for (;;) {
					if (round(seed) != want) wrong.incrementAndGet();
					rounds.incrementAndGet();
					try { Thread.sleep(1); } catch (InterruptedException e) { wrong.incrementAndGet(); }
				}
			});
			d.setDaemon(true);
			d.start();
		}
		ScheduledExecutorService timers = Executors.newScheduledThreadPool(2);
		timers.scheduleAtFixedRate(() -> ticks.incrementAndGet(), 10, 10, TimeUnit.MILLISECONDS);
		ExecutorService pool = Executors.newFixedThreadPool(8);
		ServerSocket l = new ServerSocket(Integer.parseInt(args[0]), 50, InetAddress.getLoopbackAddress());
		System.out.println("ready");
		for (;;) { Socket s = l.accept(); pool.submit(() -> answer(s, timers)); }
	}
}
END

# java_there OPTION...
java_there() {
	local g requests rounds ticks gcs
	port=$(free_port)
	# Any other java that starts removes the counters of those that are dead at the moment.
	begin java java -Xmx128m -XX:+PerfDisableSharedMem "$@" Work "$port"
	wait_until 60 grep -q ready java.log
	for ((g = 1; g <= n; g++)); do
		http "$port" arm >/dev/null
		requests=$(field requests)
		again
		same "requests of generation $g" "$(field requests)" $((requests + 1))
		rounds=$(field rounds) ticks=$(field ticks) gcs=$(field gcs)
		wait_until 30 _more rounds "$rounds"
		wait_until 30 _more ticks "$ticks"
		wait_until 60 _more gcs "$gcs"
	done
	wait_until 30 _more fired $((n - 1))
	same 'wrong' "$(field wrong)" 0
	kill -TERM "$pid"
	killed "$pid"
	says_not java.log Exception
	figures "java $*"
}

javac Work.java
java_there -XX:+UseG1GC
# The other collector that people use.
if full; then
	java_there -XX:+UseParallelGC -XX:+AlwaysPreTouch
fi
