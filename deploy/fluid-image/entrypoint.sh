#!/bin/sh
exec /usr/local/bin/jindofs fluid entrypoint "$@"
