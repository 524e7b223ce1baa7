#!/bin/sh
# Sets up the node's mount namespace, then becomes the program that holds it:
#   node-mounts.sh CACHE PROGRAM [ARGUMENT...]
#
# containerd, the kubelet and the CNI plugins have paths of their own under /run, /var/lib and /var/log that no setting
# moves. Here each is an empty file system in memory, so nothing is left behind and nothing meets another containerd or
# kubelet of the machine. It all vanishes with the last process in the namespace.
set -eu
cache=$1
shift

# The cache may lie below one of the folders that are covered: held aside, then put back.
mount --bind "$cache" /mnt
for folder in /run /var/lib /var/log; do
  mount -t tmpfs -o mode=0755 soloist "$folder"
done
mkdir -p "$cache" /var/lib/kubelet /var/lib/cni /var/log/containers
mount --move /mnt "$cache"

# The kubelet sets kernel parameters of the whole machine (overcommit, what a panic does). Here it sets copies.
mkdir /run/parameters
for parameter in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  copy=/run/parameters/$(basename "$parameter")
  cat "/proc/sys/$parameter" >"$copy"
  mount --bind "$copy" "/proc/sys/$parameter"
done

exec "$@"
