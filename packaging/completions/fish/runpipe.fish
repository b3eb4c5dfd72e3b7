complete -c runpipe -l bind -d 'Listen on this address only [default: all, IPv4 and IPv6]' -r
complete -c runpipe -l threads -d 'Serve the connections with this many threads [default: half the number of CPUs that this program may use, from 2 to 8; 1 on a single CPU]' -r
complete -c runpipe -l limit -d 'Move at most this many kB (of 1024 bytes) per second in each direction; 0 is no limit' -r
complete -c runpipe -l max-connections -d 'Keep at most this many connections open; further clients wait' -r
complete -c runpipe -l max-per-client -d 'Keep at most this many connections of one client open, and refuse its further ones. A client is an IPv4 address, or an IPv6 network of 64 bits' -r
complete -c runpipe -l connect-timeout -d 'Wait at most this many seconds for each address of REMOTE-HOST to accept a connection' -r
complete -c runpipe -l idle-timeout -d 'Close connections in which nothing has moved for this many seconds' -r
complete -c runpipe -l count -d 'End after this many refreshes' -r
complete -c runpipe -l interval -d 'Refresh every so many seconds, 0.1 to 86400' -r
complete -c runpipe -l json -d 'Show one JSON record per line, as docs/json.md describes them'
complete -c runpipe -l wide -d 'Cut no names'
complete -c runpipe -s h -l help -d 'Print help (see more with \'--help\')'
complete -c runpipe -s V -l version -d 'Print version'
