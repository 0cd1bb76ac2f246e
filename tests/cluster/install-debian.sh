#!/bin/sh
# Installs the Debian (or Ubuntu) packages that tests/cluster needs. Run as root. A second run
# changes nothing and does not use the network if all packages are installed.
set -eu

# runc, CNI plugins, iptables, conntrack, iproute2: the nodes.   docker-registry, apache2-utils
# (htpasswd): the two registries.   skopeo: pushes images.   buildah, debootstrap: the operator's
# image.   busybox-static: a test image.   prometheus: on demand.   shellcheck: CI.
packages="
  apache2-utils
  buildah
  busybox-static
  ca-certificates
  conntrack
  containernetworking-plugins
  debootstrap
  docker-registry
  iproute2
  iptables
  kmod
  procps
  prometheus
  python3-venv
  runc
  shellcheck
  skopeo
  util-linux
"

installed() {
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=""
for package in $packages; do
  installed "$package" || missing="$missing $package"
done
if [ -z "$missing" ]; then
  echo "install-debian: everything is installed"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "install-debian: missing:$missing; run me as root" >&2
  exit 1
fi

# Prevent the start of prometheus and docker-registry as services of this machine, because the
# harness runs its own. policy-rc.d returns 101 for "not allowed" (see invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
saved=""
restore() {
  if [ -n "$saved" ]; then
    mv -f "$saved" "$policy"
  else
    rm -f "$policy"
  fi
}
if [ -e "$policy" ]; then
  saved=$(mktemp "$policy.XXXXXX")
  mv -f "$policy" "$saved"
fi
trap restore EXIT
trap 'exit 130' INT TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
echo "install-debian: installing$missing"
apt-get update -qq
# shellcheck disable=SC2086 # a list of names
apt-get install -qq -y --no-install-recommends $missing

# With systemd (a laptop, a CI machine) a package also enables its service for the next boot.
if [ -d /run/systemd/system ]; then
  for service in prometheus docker-registry prometheus-node-exporter; do
    case "$missing" in
      *"$service"*) systemctl disable --quiet "$service" || true ;;
    esac
  done
fi
