complete -c runmonitor -l include -d 'Show only processes whose command line matches; may be given several times' -r
complete -c runmonitor -l exclude -d 'Do not show processes whose command line matches; wins over --include' -r
complete -c runmonitor -l source -d 'Where the counters come from: packets (all IP traffic of sockets), conntrack (all of TCP and UDP), sockets (TCP payload) or auto (the first of these that works here)' -r -f -a "auto\t'The first of the following that works here'
packets\t'Every packet of every socket: all IP traffic, packet headers included'
conntrack\t'Conntrack: all of TCP and UDP, packet headers included'
sockets\t'The sockets themselves: TCP payload'"
complete -c runmonitor -l group-by -d 'Add processes up that have this in common: command (the command line), program, user, unit or container' -r -f -a "command\t'The command line'
program\t'The program that the command line names'
user\t'The user that the process runs as'
unit\t'The systemd unit'
container\t'The container'"
complete -c runmonitor -l remotes -d 'Also show the remote ends with the most bytes, N of each' -r
complete -c runmonitor -l history -d 'Record what moves in minutes, hours, days and months, in an SQLite file that docs/history.md describes' -r -F
complete -c runmonitor -l history-keep -d 'Keep the last M minutes, H hours and D days with traffic, D at least 31; months stay' -r
complete -c runmonitor -l history-size -d 'Keep less than that in a file of more than this many MiB' -r
complete -c runmonitor -l history-interval -d 'Write every so many seconds, 1 to 60' -r
complete -c runmonitor -l count -d 'End after this many refreshes' -r
complete -c runmonitor -l interval -d 'Refresh every so many seconds, 0.1 to 86400' -r
complete -c runmonitor -l http -d 'Also serve a live page, JSON and metrics for Prometheus over HTTP, on 127.0.0.1:8000 unless this says otherwise' -r
complete -c runmonitor -l metrics-top -d 'The most applications that have metrics of their own; the others have one sum' -r
complete -c runmonitor -l metrics-labels -d 'Tell applications apart by these, too, in the metrics: unit, container, user, separated by commas' -r -f -a "unit\t'The systemd unit'
container\t'The container'
user\t'The user'"
complete -c runmonitor -l bandwidth -d 'Show bytes per second instead of totals'
complete -c runmonitor -l no-lookback -d 'Do not count bytes that connections carried before the program started'
complete -c runmonitor -l ignore-local -d 'Do not count connections of this host with itself (loopback, or its own addresses)'
complete -c runmonitor -l unowned -d 'Also show the bytes that belong to no process, one line for each reason'
complete -c runmonitor -l top -d 'Show an interactive view, as top does; ? there lists its keys'
complete -c runmonitor -l resolve -d 'Also show the names of the remote ends\' addresses'
complete -c runmonitor -l keep -d 'Keep the totals of what has ended'
complete -c runmonitor -l history-remotes -d 'Record each remote address by itself'
complete -c runmonitor -l json -d 'Show one JSON record per line, as docs/json.md describes them'
complete -c runmonitor -l wide -d 'Cut no names'
complete -c runmonitor -s h -l help -d 'Print help (see more with \'--help\')'
complete -c runmonitor -s V -l version -d 'Print version'
