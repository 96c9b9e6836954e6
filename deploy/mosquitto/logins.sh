#!/bin/sh
# Who may log in? Makes a password for each account that has none, and gives each service a volume with its own alone.
#
# Run by the service `logins` before everything else, as root, without a network. MQTT_PASSWORDS ("gateway=… h100-1=…") and
# GRAFANA_ADMIN_PASSWORD win over what is there. No password is printed.
set -eu
umask 077

accounts="gateway a100-80g-1 a100-80g-2 h100-1 h200-1 vllm-0 vllm-1"
service_user=10001
broker_user=1883
grafana_user=472

made() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

given() { # the password of account $1 in MQTT_PASSWORDS, if any
  for pair in ${MQTT_PASSWORDS:-}; do
    if [ "${pair%%=*}" = "$1" ]; then printf '%s' "${pair#*=}"; fi
  done
}

checked() { # $2, if it can stand in a URL as it is
  case "$2" in
    *[!A-Za-z0-9_.~-]*) echo "the password of $1 has other signs than letters, digits and _.~-" >&2; exit 1 ;;
    ????????????????*) printf '%s' "$2" ;;
    *) echo "the password of $1 is shorter than 16 signs" >&2; exit 1 ;;
  esac
}

put() { # standard input into file $1 for user $2 alone; new, so that nobody reads half of it
  cat > "$1.new"
  chmod 400 "$1.new"
  chown "$2:$2" "$1.new"
  mv -f "$1.new" "$1"
}

plain=/tmp/passwords
: > "$plain"
for account in $accounts; do
  file="/logins/$account/agentserve_mqtt_url"
  password=$(given "$account")
  if [ -n "$password" ]; then
    password=$(checked "$account" "$password")
  elif [ -s "$file" ]; then
    password=$(sed 's#^mqtt://[^:]*:\([^@]*\)@.*#\1#' "$file")
  else
    password=$(made)
  fi
  printf 'mqtt://%s:%s@mosquitto:1883\n' "$account" "$password" | put "$file" "$service_user"
  printf '%s:%s\n' "$account" "$password" >> "$plain"
done

health=/logins/broker/mosquitto_sub
if [ ! -s "$health" ]; then
  printf -- '-u health\n-P %s\n' "$(made)" | put "$health" "$broker_user"
fi
printf 'health:%s\n' "$(sed -n 's/^-P //p' "$health")" >> "$plain"

mosquitto_passwd -U "$plain"
put /logins/broker/passwords "$broker_user" < "$plain"
rm -f "$plain"

chown 1000:1000 /models # a new volume is root's, and vLLM is not

admin=/logins/grafana/admin_password
if [ -n "${GRAFANA_ADMIN_PASSWORD:-}" ]; then
  printf '%s' "$GRAFANA_ADMIN_PASSWORD" | put "$admin" "$grafana_user"
elif [ ! -s "$admin" ]; then
  made | put "$admin" "$grafana_user"
fi
echo "logins are there for: $accounts, the broker's health check and Grafana's admin"
