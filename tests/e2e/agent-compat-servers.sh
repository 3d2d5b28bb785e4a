#!/bin/bash
# nginx serves and reloads, and postgres makes a cluster and serves a session, as they do without the agent.
# timeout: 180
. "$(dirname "$0")/../lib.sh"
. "$TESTS/lib-work.sh"
. "$TESTS/lib-agent.sh"
. "$TESTS/lib-programs.sh"

need python3 setpriv

# ---- nginx -------------------------------------------------------------------------------

if command -v nginx >/dev/null; then
	port=$(free_port)
	cat >in.nginx <<END
mkdir logs www
seq 100000 >www/big
echo hello >www/index.html
cat >nginx.conf <<X
user root;
worker_processes 2;
pid \$PWD/nginx.pid;
error_log \$PWD/logs/error.log notice;
events { worker_connections 64; }
http {
	access_log \$PWD/logs/access.log;
	client_body_temp_path tmp1; proxy_temp_path tmp2; fastcgi_temp_path tmp3; uwsgi_temp_path tmp4; scgi_temp_path tmp5;
	server { listen 127.0.0.1:$port; root \$PWD/www; gzip on; gzip_types *; }
}
X
get() { python3 -c 'import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen("http://127.0.0.1:$port/" + sys.argv[1]).read())' "\$1"; }
nginx -p . -e logs/error.log -c nginx.conf -t
nginx -p . -e logs/error.log -c nginx.conf
for i in \$(seq 500); do (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && break; sleep 0.02; done
get ''
get big | sha256sum
nginx -p . -e logs/error.log -c nginx.conf -s reload
for i in \$(seq 500); do [ \$(grep -c 'start worker process ' logs/error.log) -ge 4 ] && break; sleep 0.02; done
get big | sha256sum
pid=\$(cat nginx.pid)
nginx -p . -e logs/error.log -c nginx.conf -s quit
for i in \$(seq 500); do [ -d /proc/\$pid ] || break; sleep 0.02; done
[ -d /proc/\$pid ] && { echo still there; kill -KILL \$pid; }
sed 's/.* "GET/GET/' logs/access.log | sort -u
grep -oE '\[(notice|error|alert|emerg|crit)\] [^:]*: (start worker process|reconfiguring|exiting|exit|worker process|gracefully|signal .*SIGQUIT).*' logs/error.log |
	sed 's/[0-9]\+//g' | sort -u
grep -E '\[(error|alert|emerg|crit|warn)\]' logs/error.log
exit 0
END
	unchanged nginx bash "$PWD/in.nginx"
else
	echo 'nginx is not installed'
fi

# ---- postgres -----------------------------------------------------------------------------

pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1 || true)
# Not as root, and initdb wants a user that has a name.
user=$(id -u postgres 2>/dev/null || id -u nobody)
if [ -n "$pg" ] && [ "$(id -u)" -eq 0 ]; then
	place=$(mktemp -d /var/tmp/usnap-test.XXXXXX)
	on_exit 'rm -rf "$place"'
	chmod 755 "$place"
	cp "$AGENT" "$place/agent.so"
	chmod 755 "$place/agent.so"
	cat >"$place/session.sql" <<'END'
create table t(a int primary key, b text);
insert into t select i, repeat(i::text, 10) from generate_series(1, 50000) i;
create index on t(b);
analyze t;
set parallel_setup_cost = 0;
set parallel_tuple_cost = 0;
set min_parallel_table_scan_size = 0;
select count(*), sum(length(b)) from t;
begin;
delete from t where a % 2 = 0;
select count(*) from t;
rollback;
select 1 / 0;
do $$ begin for i in 1..1000 loop perform pg_advisory_lock(i); perform pg_advisory_unlock(i); end loop; end $$;
copy (select * from t order by b limit 3) to stdout;
vacuum full t;
checkpoint;
select a from t where b = '7777777777';
no such statement;
END
	cat >"$place/in.sh" <<END
set -u
export PATH=$pg:\$PATH LC_ALL=C TZ=UTC
initdb -D data -A trust -U me -N
echo initdb \$?
cat >>data/postgresql.conf <<X
listen_addresses = ''
unix_socket_directories = '\$PWD'
fsync = off
logging_collector = off
log_line_prefix = ''
X
pg_ctl -D data -l log -w start >started
echo start \$?
psql -h "\$PWD" -U me -d postgres -X -a -f $place/session.sql
echo psql \$?
pg_ctl -D data -w stop -m fast >stopped
echo stop \$?
sed 's/PID [0-9]*/PID N/; s/[0-9]\+\.[0-9]\+ s/N s/g; s/at [0-9: -]\+UTC/at T/' log | grep -v 'checkpoint complete\|checkpoint starting'
END
	chmod 644 "$place"/*.sh "$place"/*.sql
	mkdir -m 777 "$place/run"
	(
		AGENT=$place/agent.so
		cd "$place/run"
		brief=$(full || echo 1) unchanged postgres setpriv --reuid "$user" --regid "$user" --clear-groups bash "$place/in.sh"
	)
else
	echo 'postgres is not installed, or this is not root'
fi
