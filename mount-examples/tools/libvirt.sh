#!/bin/bash
# libvirt: lists AP cards, queues and the matrix, and creates mediated devices, with its own libvirtd.
. "$(dirname -- "$0")/prelude.sh" --tmpfs /etc/mdevctl.d --tmpfs /etc/libvirt --tmpfs /var/lib/libvirt --tmpfs /var/cache/libvirt

# Only the node device driver: that of QEMU wants a user which may not exist here.
export LIBVIRT_DRIVER_DIR=/run/drivers
mkdir -p $LIBVIRT_DRIVER_DIR /run/libvirt /etc/mdevctl.d/scripts.d/{callouts,notifiers}
cp /usr/lib/*/libvirt/connection-driver/libvirt_driver_nodedev.so $LIBVIRT_DRIVER_DIR
printf '%s\n' 'auth_unix_rw = "none"' 'auth_unix_ro = "none"' 'unix_sock_group = "root"' > /etc/libvirt/libvirtd.conf
libvirtd --timeout 60 > /run/libvirtd.log 2>&1 &
# Without a terminal, on which virsh would ask polkit, and say each time that there is none here.
virsh() { setsid --wait virsh --quiet --connect nodedev:///system "$@" | sed -e '/./!d'; return "${PIPESTATUS[0]}"; }
wait_for '[ -S /run/libvirt/libvirt-sock ]'
wait_for '[ "$(virsh nodedev-list --cap ap_queue 2> /dev/null | grep -c .)" = 9 ]'

for capability in ap_card ap_queue ap_matrix mdev_types mdev; do t virsh nodedev-list --cap $capability; done
for device in ap_card00 ap_00_0006 ap_matrix mdev_669d9b23_fe1b_4ecb_be08_a2fabca99b71_matrix; do
    t virsh nodedev-dumpxml $device
done
D=mdev_11111111_2222_4333_8444_555555555555_matrix
cat > /run/mdev.xml <<XML
<device><parent>ap_matrix</parent><capability type="mdev"><type id="vfio_ap-passthrough"/>
  <uuid>$U1</uuid><attr name='assign_adapter' value='0x02'/>
  <attr name='assign_domain' value='0x001f'/><attr name='assign_control_domain' value='0x001f'/></capability></device>
XML
t virsh nodedev-create /run/mdev.xml
t cat /sys/bus/mdev/devices/$U1/matrix
t virsh nodedev-dumpxml $D
t virsh nodedev-destroy $D
t ls /sys/bus/mdev/devices
t virsh nodedev-define /run/mdev.xml
t virsh nodedev-list --cap mdev
t virsh nodedev-list --cap mdev --all
t virsh nodedev-start $D
t virsh nodedev-info $D
t virsh nodedev-destroy $D
t virsh nodedev-undefine $D
wait_for '! virsh nodedev-list --cap mdev --all | grep -q ^$D'
t virsh nodedev-list --cap mdev --all
kill %1
