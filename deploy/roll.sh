#!/usr/bin/env bash
# Replaces the containers of a Compose service by new ones with the images and settings that `.env` now
# names, while the others serve: an upgrade, the way back, new weights. Beside compose.yaml:
#
#   deploy/roll.sh gateway            # or engine_worker, toolparser_worker, engine_worker_second
#
# As many new containers start as there are old ones. Once all of them serve, the old ones are drained
# one by one. If the new ones do not serve within ROLL_TIMEOUT_S, they are removed and the old ones
# stay. COMPOSE="docker-compose" for Compose 1.29.
set -euo pipefail
service=${1:?say which service, such as gateway}
read -ra compose <<<"${COMPOSE:-docker compose}"
timeout_s=${ROLL_TIMEOUT_S:-900}
if [ "$service" = auth_worker ]; then
  echo "There is one auth worker on a database: ${compose[*]} up -d auth_worker" >&2
  exit 1
fi

mapfile -t old < <("${compose[@]}" ps -q "$service")
if [ ${#old[@]} -eq 0 ]; then
  echo "No container of $service runs; ${compose[*]} up -d starts one." >&2
  exit 1
fi

# A gateway is healthy as soon as it answers; it serves once workers have found it.
serves() {
  if [ "$service" = gateway ]; then
    docker exec "$1" python -c \
      "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=5)" \
      >/dev/null 2>&1
  else
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ]
  fi
}

# Without --no-deps, which Compose 2 counts as another configuration: a later `up -d` would replace
# everything once more. What the service depends on is left as it is.
before=$("${compose[@]}" ps -a -q "$service")
is_started=yes
"${compose[@]}" up -d --no-recreate --scale "$service=$((2 * ${#old[@]}))" "$service" || is_started=no
mapfile -t new < <("${compose[@]}" ps -a -q "$service" | grep -v -F -x "$before")
if [ $is_started = no ]; then
  echo "The new containers of $service could not start; the old ones stay." >&2
  if [ "$service" = gateway ]; then echo "Two gateways need an empty PENSTOCK_PORT." >&2; fi
  [ ${#new[@]} -eq 0 ] || docker rm --force "${new[@]}" >/dev/null
  exit 1
fi
end=$((SECONDS + timeout_s))
for container in "${new[@]}"; do
  until serves "$container"; do
    if [ $SECONDS -ge $end ]; then
      echo "The new containers of $service do not serve after $timeout_s s; the old ones stay." >&2
      docker logs --tail 20 "$container" >&2
      docker rm --force "${new[@]}" >/dev/null
      exit 1
    fi
    sleep 2
  done
done
# nginx asks for the gateways' addresses every five seconds.
if [ "$service" = gateway ]; then sleep 10; fi
for container in "${old[@]}"; do
  docker stop --time 45 "$container" >/dev/null
  code=$(docker inspect -f '{{.State.ExitCode}}' "$container")
  [ "$code" = 0 ] || echo "$container ended with $code; its last lines:" "$(docker logs --tail 5 "$container" 2>&1)"
  docker rm "$container" >/dev/null
done
echo "$service: ${#new[@]} new, ${#old[@]} gone."
