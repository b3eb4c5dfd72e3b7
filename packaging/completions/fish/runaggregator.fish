complete -c runaggregator -l app-config -d 'Which command lines belong to which application' -r -F
complete -c runaggregator -l monitor-config -d 'What to monitor and which pipes to open; without it, monitor everything and open none' -r -F
complete -c runaggregator -l notification-config -d 'When to notify, and how' -r -F
complete -c runaggregator -l auto-group -d 'Group processes that belong to no application by their program, or by PROPERTY: program, user, unit or container' -r -f -a "command\t'The command line'
program\t'The program that the command line names'
user\t'The user that the process runs as'
unit\t'The systemd unit'
container\t'The container'"
complete -c runaggregator -l source -d 'Where the counters come from: packets (all IP traffic of sockets), conntrack (all of TCP and UDP), sockets (TCP payload) or auto (the first of these that works here)' -r -f -a "auto\t'The first of the following that works here'
packets\t'Every packet of every socket: all IP traffic, packet headers included'
conntrack\t'Conntrack: all of TCP and UDP, packet headers included'
sockets\t'The sockets themselves: TCP payload'"
complete -c runaggregator -l history -d 'Record what moves in minutes, hours, days and months, in an SQLite file that docs/history.md describes' -r -F
complete -c runaggregator -l history-keep -d 'Keep the last M minutes, H hours and D days with traffic, D at least 31; months stay' -r
complete -c runaggregator -l history-size -d 'Keep less than that in a file of more than this many MiB' -r
complete -c runaggregator -l history-interval -d 'Write every so many seconds, 1 to 60' -r
complete -c runaggregator -l report -d 'Show who moved how much in each hour, day, week or month of the --history, and exit' -r -f -a "hour\t''
day\t''
week\t''
month\t''"
complete -c runaggregator -l since -d 'Begin the report then: 2026-11-25, "2026-11-25 14:00", today, yesterday, "3 days" [default: the present period]' -r
complete -c runaggregator -l until -d 'End the report before the period that begins then' -r
complete -c runaggregator -l include -d 'Report only names that match; may be given several times' -r
complete -c runaggregator -l exclude -d 'Do not report names that match; wins over --include' -r
complete -c runaggregator -l top -d 'Show an interactive view, as top does; ? there lists its keys. With --report, N is the number of names [default: 10, and all with --json or --csv]' -r
complete -c runaggregator -l remotes -d 'Also show the remote ends with the most bytes, N of each' -r
complete -c runaggregator -l count -d 'End after this many refreshes' -r
complete -c runaggregator -l interval -d 'Refresh every so many seconds, 0.1 to 86400' -r
complete -c runaggregator -l http -d 'Also serve a live page, JSON and metrics for Prometheus over HTTP, on 127.0.0.1:8000 unless this says otherwise' -r
complete -c runaggregator -l metrics-top -d 'The most applications that have metrics of their own; the others have one sum' -r
complete -c runaggregator -l totals -d 'Show totals instead of bandwidth'
complete -c runaggregator -l unowned -d 'Also show the bytes that belong to no process, one line for each reason'
complete -c runaggregator -l check -d 'Report every mistake in the files, and exit'
complete -c runaggregator -l strict -d 'Take each warning about the files for a mistake'
complete -c runaggregator -l history-remotes -d 'Record each remote address by itself'
complete -c runaggregator -l csv -d 'Report as comma-separated values'
complete -c runaggregator -l resolve -d 'Also show the names of the remote ends\' addresses'
complete -c runaggregator -l keep -d 'Keep the totals of what has ended'
complete -c runaggregator -l json -d 'Show one JSON record per line, as docs/json.md describes them'
complete -c runaggregator -l wide -d 'Cut no names'
complete -c runaggregator -s h -l help -d 'Print help (see more with \'--help\')'
complete -c runaggregator -s V -l version -d 'Print version'
