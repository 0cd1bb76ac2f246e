module imagegate.dev/tests/cluster/build/pause

go 1.26.0
