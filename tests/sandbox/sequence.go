// The calls of sequence.c, with the same output, made by Go: its runtime makes system calls without a C library.
//
//	sequence legacy GROUP UUID       container and group
//	sequence cdev NODE               device node and iommufd
//	sequence runtime GROUP UUID      what Go's runtime does with descriptors, threads and children
package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	getAPIVersion, checkExtension, setIOMMU                = 0x3b64, 0x3b65, 0x3b66
	groupGetStatus, groupSetContainer, groupUnsetContainer = 0x3b67, 0x3b68, 0x3b69
	groupGetDeviceFD, deviceGetInfo, deviceGetRegionInfo   = 0x3b6a, 0x3b6b, 0x3b6c
	deviceGetIRQInfo, deviceSetIRQs, deviceReset           = 0x3b6d, 0x3b6e, 0x3b6f
	iommuGetInfo, iommuMapDMA, iommuUnmapDMA               = 0x3b70, 0x3b71, 0x3b72
	deviceFeature, bindIOMMUFD, attachPT, detachPT         = 0x3b75, 0x3b76, 0x3b77, 0x3b78
	iommuDestroy, ioasAlloc, ioasIOVARanges                = 0x3b80, 0x3b81, 0x3b84
	ioasMap, ioasUnmap                                     = 0x3b85, 0x3b86

	type1v2                                       = 3
	get, set, probe                               = 1 << 16, 1 << 17, 1 << 18
	featureMigration, featureState, featureDMALog = 1, 2, 6
	stop, running, stopCopy                       = 1, 2, 3
	triggerEventfd                                = 1<<2 | 1<<5
	eventfdCloexec                                = 0x80000
	memorySize                                    = 1 << 20
)

type (
	deviceInfo struct{ argsz, flags, regions, irqs, caps uint32 }
	irqInfo    struct{ argsz, flags, index, count uint32 }
	irqSet     struct {
		argsz, flags, index, start, count uint32
		fd                                int32
	}
	regionInfo struct {
		argsz, flags, index, caps uint32
		size, offset              uint64
	}
	feature struct {
		argsz, flags uint32
		state        uint32
		fd           int32
	}
	groupStatus struct{ argsz, flags uint32 }
	iommuInfo   struct {
		argsz, flags uint32
		pages        uint64
		caps         uint32
		rest         [33]uint32
	}
	dmaMap struct {
		argsz, flags      uint32
		vaddr, iova, size uint64
	}
	dmaUnmap struct {
		argsz, flags uint32
		iova, size   uint64
	}
	binding struct {
		argsz, flags uint32
		iommufd      int32
		id           uint32
	}
	attachment struct{ argsz, flags, id uint32 }
	detachment struct{ argsz, flags uint32 }
	allocation struct{ size, flags, id uint32 }
	iovaRange  struct{ start, last uint64 }
	iovaRanges struct {
		size, id, count, reserved uint32
		ranges                    *iovaRange
		alignment                 uint64
	}
	mapping struct {
		size, flags, id, reserved uint32
		va, length, iova          uint64
	}
	unmapping struct {
		size, id     uint32
		iova, length uint64
	}
	destruction struct{ size, id uint32 }
)

var names = map[syscall.Errno]string{
	syscall.ENOENT: "ENOENT", syscall.EBADF: "EBADF", syscall.EBUSY: "EBUSY", syscall.EEXIST: "EEXIST",
	syscall.EINVAL: "EINVAL", syscall.ENOTTY: "ENOTTY", syscall.EBADFD: "EBADFD", syscall.EMSGSIZE: "EMSGSIZE",
}

func name(err error) string {
	if err == nil {
		return "done"
	}
	number, _ := err.(syscall.Errno)
	if known, ok := names[number]; ok {
		return known
	}
	return err.Error()
}

// Makes an ioctl with a struct.
func ioctl[T any](fd int, request uintptr, argument *T) (int, syscall.Errno) {
	result, _, number := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(argument)))
	return int(result), number
}

// Makes an ioctl with a number.
func ioctlNumber(fd int, request, argument uintptr) (int, syscall.Errno) {
	result, _, number := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, argument)
	return int(result), number
}

// Tells what came of a call.
func tell(call string, result int, number syscall.Errno) {
	if number != 0 {
		fmt.Printf("%s: error %s", call, name(number))
		return
	}
	fmt.Printf("%s: %d", call, result)
}

func line(call string, result int, number syscall.Errno) {
	tell(call, result, number)
	fmt.Println()
}

func must[T any](value T, err error) T {
	if err != nil && err != syscall.Errno(0) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

// Opens a device as programs in Go do, and keeps it open: a file that the collector finds is closed.
func open(path string) int {
	file := must(os.OpenFile(path, os.O_RDWR, 0))
	kept = append(kept, file)
	return int(file.Fd())
}

var kept []*os.File

func newDescriptor(call string, fd int, number syscall.Errno) int {
	must(fd, number)
	flags, _, number := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	must(fd, number)
	fmt.Printf("%s: %s\n", call, map[bool]string{true: "close-on-exec", false: "inherited"}[flags&syscall.FD_CLOEXEC != 0])
	return fd
}

func eventfd() int {
	fd, _, number := syscall.Syscall(syscall.SYS_EVENTFD2, 0, eventfdCloexec, 0)
	return must(int(fd), number)
}

func device(fd int) {
	info := deviceInfo{argsz: 20}
	result, number := ioctl(fd, deviceGetInfo, &info)
	tell("DEVICE_GET_INFO", result, number)
	fmt.Printf(" argsz %d flags %#x regions %d irqs %d\n", info.argsz, info.flags, info.regions, info.irqs)
	request := eventfd()
	for index := uint32(0); index < 3; index++ {
		irq := irqInfo{argsz: 16, index: index}
		result, number = ioctl(fd, deviceGetIRQInfo, &irq)
		tell("DEVICE_GET_IRQ_INFO", result, number)
		flags := "0"
		if irq.flags != 0 {
			flags = fmt.Sprintf("%#x", irq.flags)
		}
		fmt.Printf(" index %d flags %s count %d\n", irq.index, flags, irq.count)
		irqs := irqSet{argsz: 24, flags: triggerEventfd, index: index, count: 1, fd: int32(request)}
		result, number = ioctl(fd, deviceSetIRQs, &irqs)
		line("DEVICE_SET_IRQS", result, number)
		irqs.fd = -1
		result, number = ioctl(fd, deviceSetIRQs, &irqs)
		line("DEVICE_SET_IRQS drop", result, number)
	}
	result, number = ioctlNumber(fd, deviceReset, 0)
	line("DEVICE_RESET", result, number)
	asked := feature{argsz: 16, flags: get | featureMigration}
	result, number = ioctl(fd, deviceFeature, &asked)
	tell("FEATURE GET MIGRATION", result, number)
	fmt.Printf(" flags %d\n", *(*uint64)(unsafe.Pointer(&asked.state)))
	asked.flags = probe | featureDMALog
	result, number = ioctl(fd, deviceFeature, &asked)
	line("FEATURE PROBE DMA_LOGGING_START", result, number)
	for _, state := range []uint32{stop, stopCopy} {
		asked.flags, asked.state = set|featureState, state
		result, number = ioctl(fd, deviceFeature, &asked)
		tell("FEATURE SET MIG_DEVICE_STATE", result, number)
		fmt.Printf(" state %d data_fd %s\n", asked.state, map[bool]string{true: "none", false: "some"}[asked.fd < 0])
	}
	stream := newDescriptor("data_fd", int(asked.fd), 0)
	buffer := make([]byte, 4096)
	length := must(syscall.Read(stream, buffer))
	fmt.Print("stream:")
	for at := 0; at < length; at += 8 {
		fmt.Print(" ", hex.EncodeToString(buffer[at:at+8]))
	}
	fmt.Printf("\nread again: %d\n", must(syscall.Read(stream, buffer)))
	_, err := syscall.Write(stream, []byte("x"))
	fmt.Printf("write: %s\n", name(err))
	syscall.Close(stream)
	asked.state = running
	result, number = ioctl(fd, deviceFeature, &asked)
	tell("FEATURE SET RUNNING", result, number)
	fmt.Printf(" state %d data_fd %d\n", asked.state, asked.fd)
	_, err = syscall.Read(fd, buffer[:1])
	fmt.Printf("read of the device: %s\n", name(err))
	_, err = syscall.Pread(fd, buffer[:1], 0)
	fmt.Printf("pread of the device: %s\n", name(err))
	region := regionInfo{argsz: 32}
	result, number = ioctl(fd, deviceGetRegionInfo, &region)
	line("DEVICE_GET_REGION_INFO", result, number)
}

func legacy(path, uuid string) {
	name0 := must(syscall.BytePtrFromString(uuid))
	group := open(path)
	_, err := syscall.Open(path, syscall.O_RDWR, 0)
	fmt.Printf("group opened again: %s\n", name(err))
	status := groupStatus{argsz: 8}
	result, number := ioctl(group, groupGetStatus, &status)
	tell("GROUP_GET_STATUS", result, number)
	fmt.Printf(" flags %d\n", status.flags)
	container := open("/dev/vfio/vfio")
	result, number = ioctlNumber(container, getAPIVersion, 0)
	line("GET_API_VERSION", result, number)
	result, number = ioctlNumber(container, checkExtension, type1v2)
	line("CHECK_EXTENSION TYPE1v2", result, number)
	result, number = ioctlNumber(container, setIOMMU, type1v2)
	line("SET_IOMMU without a group", result, number)
	result, number = ioctl(group, groupGetDeviceFD, name0)
	line("GROUP_GET_DEVICE_FD without a container", result, number)
	attached := int32(container)
	result, number = ioctl(group, groupSetContainer, &attached)
	line("GROUP_SET_CONTAINER", result, number)
	result, number = ioctl(group, groupGetStatus, &status)
	tell("GROUP_GET_STATUS", result, number)
	fmt.Printf(" flags %d\n", status.flags)
	result, number = ioctlNumber(container, setIOMMU, type1v2)
	line("SET_IOMMU", result, number)
	iommu := iommuInfo{argsz: 24}
	result, number = ioctl(container, iommuGetInfo, &iommu)
	tell("IOMMU_GET_INFO", result, number)
	fmt.Printf(" argsz %d flags %d pages %#x caps at %d\n", iommu.argsz, iommu.flags, iommu.pages, iommu.caps)
	result, number = ioctl(container, iommuGetInfo, &iommu)
	tell("IOMMU_GET_INFO", result, number)
	for at := uintptr(iommu.caps); at != 0; {
		header := (*struct {
			id, version uint16
			next        uint32
		})(unsafe.Pointer(uintptr(unsafe.Pointer(&iommu)) + at))
		fmt.Printf(" cap %d", header.id)
		at = uintptr(header.next)
	}
	fmt.Println()
	memory := must(syscall.Mmap(-1, 0, memorySize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON))
	dma := dmaMap{argsz: 32, flags: 3, vaddr: uint64(uintptr(unsafe.Pointer(&memory[0]))), size: memorySize}
	result, number = ioctl(container, iommuMapDMA, &dma)
	line("IOMMU_MAP_DMA", result, number)
	result, number = ioctl(container, iommuMapDMA, &dma)
	line("IOMMU_MAP_DMA again", result, number)
	result, number = ioctl(group, groupGetDeviceFD, name0)
	fd := newDescriptor("GROUP_GET_DEVICE_FD", result, number)
	device(fd)
	result, number = ioctlNumber(group, groupUnsetContainer, 0)
	line("GROUP_UNSET_CONTAINER", result, number)
	undo := dmaUnmap{argsz: 24, size: memorySize}
	result, number = ioctl(container, iommuUnmapDMA, &undo)
	tell("IOMMU_UNMAP_DMA", result, number)
	fmt.Printf(" size %#x\n", undo.size)
	syscall.Close(fd)
	result, number = ioctlNumber(group, groupUnsetContainer, 0)
	line("GROUP_UNSET_CONTAINER", result, number)
}

func cdev(path string) {
	fd, iommufd := open(path), open("/dev/iommu")
	info := deviceInfo{argsz: 20}
	result, number := ioctl(fd, deviceGetInfo, &info)
	line("DEVICE_GET_INFO unbound", result, number)
	bound := binding{argsz: 16, iommufd: int32(fd)}
	result, number = ioctl(fd, bindIOMMUFD, &bound)
	line("BIND_IOMMUFD to itself", result, number)
	bound.iommufd = int32(iommufd)
	result, number = ioctl(fd, bindIOMMUFD, &bound)
	tell("BIND_IOMMUFD", result, number)
	fmt.Printf(" id %d\n", bound.id)
	result, number = ioctl(fd, bindIOMMUFD, &bound)
	line("BIND_IOMMUFD again", result, number)
	ioas := allocation{size: 12}
	result, number = ioctl(iommufd, ioasAlloc, &ioas)
	tell("IOAS_ALLOC", result, number)
	fmt.Printf(" id %d\n", ioas.id)
	attached := attachment{argsz: 12, id: 77}
	result, number = ioctl(fd, attachPT, &attached)
	line("ATTACH_IOMMUFD_PT unknown", result, number)
	attached.id = ioas.id
	result, number = ioctl(fd, attachPT, &attached)
	tell("ATTACH_IOMMUFD_PT", result, number)
	fmt.Printf(" id %d\n", attached.id)
	// What the ioctl writes to has to stay where it is: on the heap, not on a goroutine's stack.
	list := &[4]iovaRange{}
	asked := iovaRanges{size: 32, id: ioas.id, ranges: &list[0]}
	result, number = ioctl(iommufd, ioasIOVARanges, &asked)
	tell("IOAS_IOVA_RANGES", result, number)
	fmt.Printf(" count %d\n", asked.count)
	result, number = ioctl(iommufd, ioasIOVARanges, &asked)
	tell("IOAS_IOVA_RANGES", result, number)
	fmt.Printf(" %x-%x alignment %d\n", list[0].start, list[0].last, asked.alignment)
	memory := must(syscall.Mmap(-1, 0, memorySize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON))
	mapped := mapping{size: 40, flags: 7, id: ioas.id, va: uint64(uintptr(unsafe.Pointer(&memory[0]))), length: memorySize}
	result, number = ioctl(iommufd, ioasMap, &mapped)
	line("IOAS_MAP", result, number)
	device(fd)
	destroyed := destruction{size: 8, id: ioas.id}
	result, number = ioctl(iommufd, iommuDestroy, &destroyed)
	line("DESTROY in use", result, number)
	detached := detachment{argsz: 8}
	result, number = ioctl(fd, detachPT, &detached)
	line("DETACH_IOMMUFD_PT", result, number)
	undo := unmapping{size: 24, id: ioas.id, length: 1<<64 - 1}
	result, number = ioctl(iommufd, ioasUnmap, &undo)
	tell("IOAS_UNMAP", result, number)
	fmt.Printf(" length %#x\n", undo.length)
	result, number = ioctl(iommufd, iommuDestroy, &destroyed)
	line("DESTROY", result, number)
}

// Opens a device through a container.
func opened(path, uuid string) int {
	group, container := open(path), open("/dev/vfio/vfio")
	attached := int32(container)
	must(ioctl(group, groupSetContainer, &attached))
	must(ioctlNumber(container, setIOMMU, type1v2))
	return must(ioctl(group, groupGetDeviceFD, must(syscall.BytePtrFromString(uuid))))
}

// Many threads at once, while the collector stops them again and again by signals.
func threads(fd int) {
	const workers, calls = 16, 50
	var group sync.WaitGroup
	wrong := make(chan string, workers*calls)
	for worker := 0; worker < workers; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			runtime.LockOSThread()
			for call := 0; call < calls; call++ {
				asked := feature{argsz: 16, flags: get | featureState}
				if _, number := ioctl(fd, deviceFeature, &asked); number != 0 || asked.state != running {
					wrong <- fmt.Sprintf("%s, state %d", name(number), asked.state)
				}
				runtime.GC()
			}
		}()
	}
	group.Wait()
	close(wrong)
	for said := range wrong {
		fmt.Println("thread:", said)
	}
	fmt.Println("threads: done")
}

// Waits on an eventfd in the network poller, while an interrupt is on its way.
func interrupt(fd int) {
	request := eventfd()
	must(0, syscall.SetNonblock(request, true))
	file := os.NewFile(uintptr(request), "request")
	must(0, file.SetReadDeadline(time.Now().Add(time.Minute)))
	irqs := irqSet{argsz: 24, flags: triggerEventfd, index: 1, count: 1, fd: int32(request)}
	must(ioctl(fd, deviceSetIRQs, &irqs))
	told := make(chan string)
	go func() {
		buffer := make([]byte, 8)
		length, err := file.Read(buffer)
		told <- fmt.Sprintf("%d bytes, %v", length, err)
	}()
	must(0, os.WriteFile("/sys/devices/vfio_ap/matrix/"+os.Args[3]+"/assign_domain", []byte("4"), 0))
	fmt.Println("interrupt:", <-told)
	file.Close()
}

// Reads the stream through a file that does not block, which Go puts into its poller if that takes it.
func stream(fd int) {
	asked := feature{argsz: 16, flags: set | featureState, state: stopCopy}
	must(ioctl(fd, deviceFeature, &asked))
	must(0, syscall.SetNonblock(int(asked.fd), true))
	file := os.NewFile(uintptr(asked.fd), "stream")
	content := must(io.ReadAll(file))
	fmt.Printf("stream: %d bytes, %s\n", len(content), hex.EncodeToString(content[:4]))
	must(0, file.Close())
	asked.state = running
	must(ioctl(fd, deviceFeature, &asked))
}

// Gives the device to a child, which os/exec starts with a clone that shares memory as vfork(2) does.
func child(fd int) {
	command := exec.Command("/proc/self/exe", "child")
	command.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "device")}
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	must(0, command.Run())
	runtime.KeepAlive(command)
}

func main() {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "legacy":
		legacy(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "cdev":
		cdev(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "runtime":
		fd := opened(os.Args[2], os.Args[3])
		threads(fd)
		interrupt(fd)
		stream(fd)
		child(fd)
	case len(os.Args) == 2 && os.Args[1] == "child":
		info := deviceInfo{argsz: 20}
		result, number := ioctl(3, deviceGetInfo, &info)
		tell("child", result, number)
		fmt.Printf(" irqs %d\n", info.irqs)
	default:
		fmt.Fprintln(os.Stderr, "usage: sequence legacy GROUP UUID | sequence cdev NODE | sequence runtime GROUP UUID")
		os.Exit(2)
	}
}
