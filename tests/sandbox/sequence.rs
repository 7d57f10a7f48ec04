// The calls of sequence.c, with the same output, made by Rust's standard library alone.
//
//     sequence legacy GROUP UUID       container and group
//     sequence cdev NODE               device node and iommufd

use std::env;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Error, Read, Write};
use std::mem::size_of;
use std::os::raw::{c_int, c_ulong, c_void};
use std::os::unix::fs::FileExt;
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::exit;

// Of the C library that the standard library is linked with; its own interface lacks them.
extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn eventfd(count: u32, flags: c_int) -> c_int;
    fn mmap(place: *mut c_void, size: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
}

const GET_API_VERSION: c_ulong = 0x3b64;
const CHECK_EXTENSION: c_ulong = 0x3b65;
const SET_IOMMU: c_ulong = 0x3b66;
const GROUP_GET_STATUS: c_ulong = 0x3b67;
const GROUP_SET_CONTAINER: c_ulong = 0x3b68;
const GROUP_UNSET_CONTAINER: c_ulong = 0x3b69;
const GROUP_GET_DEVICE_FD: c_ulong = 0x3b6a;
const DEVICE_GET_INFO: c_ulong = 0x3b6b;
const DEVICE_GET_REGION_INFO: c_ulong = 0x3b6c;
const DEVICE_GET_IRQ_INFO: c_ulong = 0x3b6d;
const DEVICE_SET_IRQS: c_ulong = 0x3b6e;
const DEVICE_RESET: c_ulong = 0x3b6f;
const IOMMU_GET_INFO: c_ulong = 0x3b70;
const IOMMU_MAP_DMA: c_ulong = 0x3b71;
const IOMMU_UNMAP_DMA: c_ulong = 0x3b72;
const DEVICE_FEATURE: c_ulong = 0x3b75;
const BIND_IOMMUFD: c_ulong = 0x3b76;
const ATTACH_IOMMUFD_PT: c_ulong = 0x3b77;
const DETACH_IOMMUFD_PT: c_ulong = 0x3b78;
const DESTROY: c_ulong = 0x3b80;
const IOAS_ALLOC: c_ulong = 0x3b81;
const IOAS_IOVA_RANGES: c_ulong = 0x3b84;
const IOAS_MAP: c_ulong = 0x3b85;
const IOAS_UNMAP: c_ulong = 0x3b86;

const TYPE1V2: c_ulong = 3;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const MIGRATION: u32 = 1;
const MIG_DEVICE_STATE: u32 = 2;
const DMA_LOGGING_START: u32 = 6;
const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const TRIGGER_EVENTFD: u32 = 1 << 2 | 1 << 5;
const EFD_CLOEXEC: c_int = 0x80000;
const F_GETFD: c_int = 1;
const FD_CLOEXEC: c_int = 1;
const MEMORY: u64 = 1 << 20;

#[repr(C)]
#[derive(Default)]
struct DeviceInfo {
    argsz: u32,
    flags: u32,
    regions: u32,
    irqs: u32,
    caps: u32,
}

#[repr(C)]
#[derive(Default)]
struct IrqInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    count: u32,
}

#[repr(C)]
#[derive(Default)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    fd: i32,
}

#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    caps: u32,
    size: u64,
    offset: u64,
}

/// A feature, with the data of MIG_DEVICE_STATE.
#[repr(C, align(8))]
#[derive(Default)]
struct Feature {
    argsz: u32,
    flags: u32,
    state: u32,
    data_fd: i32,
}

/// A feature, with the data of MIGRATION.
#[repr(C)]
#[derive(Default)]
struct Migration {
    argsz: u32,
    flags: u32,
    kinds: u64,
}

#[repr(C)]
#[derive(Default)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct IommuInfo {
    argsz: u32,
    flags: u32,
    pages: u64,
    caps: u32,
    rest: [u32; 32],
}

#[repr(C)]
#[derive(Default)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
#[derive(Default)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

#[repr(C)]
#[derive(Default)]
struct Bind {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    id: u32,
}

/// The argument of ATTACH, and of IOAS_ALLOC.
#[repr(C)]
#[derive(Default)]
struct Identified {
    size: u32,
    flags: u32,
    id: u32,
}

/// The argument of DETACH (size, flags), and of DESTROY (size, id).
#[repr(C)]
#[derive(Default)]
struct Pair {
    size: u32,
    value: u32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Range {
    start: u64,
    last: u64,
}

#[repr(C)]
#[derive(Default)]
struct Ranges {
    size: u32,
    id: u32,
    count: u32,
    reserved: u32,
    ranges: u64,
    alignment: u64,
}

#[repr(C)]
#[derive(Default)]
struct Map {
    size: u32,
    flags: u32,
    id: u32,
    reserved: u32,
    va: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
#[derive(Default)]
struct Unmap {
    size: u32,
    id: u32,
    iova: u64,
    length: u64,
}

fn name(error: &Error) -> String {
    let known = match error.raw_os_error() {
        Some(2) => "ENOENT",
        Some(9) => "EBADF",
        Some(16) => "EBUSY",
        Some(17) => "EEXIST",
        Some(22) => "EINVAL",
        Some(25) => "ENOTTY",
        Some(77) => "EBADFD",
        Some(90) => "EMSGSIZE",
        _ => return error.to_string(),
    };
    known.to_string()
}

fn outcome<T>(result: io::Result<T>) -> String {
    result.map_or_else(|error| name(&error), |_| "done".to_string())
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Makes an ioctl with a struct.
fn call<T>(file: &impl AsRawFd, request: c_ulong, argument: &mut T) -> io::Result<c_int> {
    checked(unsafe { ioctl(file.as_raw_fd(), request, argument as *mut T) })
}

/// Makes an ioctl with a number.
fn call_number(file: &impl AsRawFd, request: c_ulong, argument: c_ulong) -> io::Result<c_int> {
    checked(unsafe { ioctl(file.as_raw_fd(), request, argument) })
}

fn tell(call: &str, result: io::Result<c_int>) {
    match result {
        Ok(value) => print!("{}: {}", call, value),
        Err(error) => print!("{}: error {}", call, name(&error)),
    }
}

fn line(call: &str, result: io::Result<c_int>) {
    tell(call, result);
    println!();
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Takes a descriptor that an ioctl has returned.
fn new_descriptor(call: &str, fd: RawFd) -> io::Result<File> {
    let flags = checked(unsafe { fcntl(fd, F_GETFD) })?;
    println!("{}: {}", call, if flags & FD_CLOEXEC != 0 { "close-on-exec" } else { "inherited" });
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn memory() -> u64 {
    let (read_write, private_anonymous) = (3, 0x22);
    unsafe { mmap(std::ptr::null_mut(), MEMORY as usize, read_write, private_anonymous, -1, 0) as u64 }
}

fn device(file: &mut File) -> io::Result<()> {
    let mut info = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..Default::default() };
    tell("DEVICE_GET_INFO", call(file, DEVICE_GET_INFO, &mut info));
    println!(" argsz {} flags {:#x} regions {} irqs {}", info.argsz, info.flags, info.regions, info.irqs);
    let request = unsafe { OwnedFd::from_raw_fd(checked(eventfd(0, EFD_CLOEXEC))?) };
    for index in 0..3 {
        let mut irq = IrqInfo { argsz: size_of::<IrqInfo>() as u32, index, ..Default::default() };
        tell("DEVICE_GET_IRQ_INFO", call(file, DEVICE_GET_IRQ_INFO, &mut irq));
        let flags = if irq.flags == 0 { "0".to_string() } else { format!("{:#x}", irq.flags) };
        println!(" index {} flags {} count {}", irq.index, flags, irq.count);
        let argsz = size_of::<IrqSet>() as u32;
        let mut set = IrqSet { argsz, flags: TRIGGER_EVENTFD, index, start: 0, count: 1, fd: request.as_raw_fd() };
        line("DEVICE_SET_IRQS", call(file, DEVICE_SET_IRQS, &mut set));
        set.fd = -1;
        line("DEVICE_SET_IRQS drop", call(file, DEVICE_SET_IRQS, &mut set));
    }
    line("DEVICE_RESET", call_number(file, DEVICE_RESET, 0));
    let mut migration = Migration { argsz: 16, flags: GET | MIGRATION, ..Default::default() };
    tell("FEATURE GET MIGRATION", call(file, DEVICE_FEATURE, &mut migration));
    println!(" flags {}", migration.kinds);
    let mut feature = Feature { argsz: 16, flags: PROBE | DMA_LOGGING_START, ..Default::default() };
    line("FEATURE PROBE DMA_LOGGING_START", call(file, DEVICE_FEATURE, &mut feature));
    feature.flags = SET | MIG_DEVICE_STATE;
    for state in [STOP, STOP_COPY] {
        feature.state = state;
        tell("FEATURE SET MIG_DEVICE_STATE", call(file, DEVICE_FEATURE, &mut feature));
        println!(" state {} data_fd {}", feature.state, if feature.data_fd < 0 { "none" } else { "some" });
    }
    let mut stream = new_descriptor("data_fd", feature.data_fd)?;
    let mut content = [0; 4096];
    let length = stream.read(&mut content)?;
    print!("stream:");
    for (place, byte) in content[..length].iter().enumerate() {
        print!("{}{:02x}", if place % 8 == 0 { " " } else { "" }, byte);
    }
    println!("\nread again: {}", stream.read(&mut content)?);
    println!("write: {}", outcome(stream.write(b"x")));
    drop(stream);
    feature.state = RUNNING;
    tell("FEATURE SET RUNNING", call(file, DEVICE_FEATURE, &mut feature));
    println!(" state {} data_fd {}", feature.state, feature.data_fd);
    println!("read of the device: {}", outcome(file.read(&mut content[..1])));
    println!("pread of the device: {}", outcome(file.read_at(&mut content[..1], 0)));
    let mut region = RegionInfo { argsz: size_of::<RegionInfo>() as u32, ..Default::default() };
    line("DEVICE_GET_REGION_INFO", call(file, DEVICE_GET_REGION_INFO, &mut region));
    Ok(())
}

fn legacy(path: &str, uuid: &str) -> io::Result<()> {
    let name_of_device = CString::new(uuid)?;
    let device_fd =
        |group: &File| checked(unsafe { ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name_of_device.as_ptr()) });
    let group = open(path)?;
    println!("group opened again: {}", outcome(open(path)));
    let mut status = GroupStatus { argsz: size_of::<GroupStatus>() as u32, flags: 0 };
    tell("GROUP_GET_STATUS", call(&group, GROUP_GET_STATUS, &mut status));
    println!(" flags {}", status.flags);
    let container = open("/dev/vfio/vfio")?;
    line("GET_API_VERSION", call_number(&container, GET_API_VERSION, 0));
    line("CHECK_EXTENSION TYPE1v2", call_number(&container, CHECK_EXTENSION, TYPE1V2));
    line("SET_IOMMU without a group", call_number(&container, SET_IOMMU, TYPE1V2));
    line("GROUP_GET_DEVICE_FD without a container", device_fd(&group));
    line("GROUP_SET_CONTAINER", call(&group, GROUP_SET_CONTAINER, &mut container.as_raw_fd()));
    tell("GROUP_GET_STATUS", call(&group, GROUP_GET_STATUS, &mut status));
    println!(" flags {}", status.flags);
    line("SET_IOMMU", call_number(&container, SET_IOMMU, TYPE1V2));
    // The first one asks for how much there is; the size is that of the struct without what may follow it.
    let mut iommu = IommuInfo { argsz: 24, ..Default::default() };
    tell("IOMMU_GET_INFO", call(&container, IOMMU_GET_INFO, &mut iommu));
    println!(" argsz {} flags {} pages {:#x} caps at {}", iommu.argsz, iommu.flags, iommu.pages, iommu.caps);
    tell("IOMMU_GET_INFO", call(&container, IOMMU_GET_INFO, &mut iommu));
    // A capability is its number and version, 16 bits each, and where the next one is, in bytes from the beginning.
    let first_of_rest = 20;
    let mut at = iommu.caps;
    while at != 0 {
        let word = (at as usize - first_of_rest) / 4;
        print!(" cap {}", if cfg!(target_endian = "big") { iommu.rest[word] >> 16 } else { iommu.rest[word] & 0xffff });
        at = iommu.rest[word + 1];
    }
    println!();
    let (argsz, flags) = (size_of::<DmaMap>() as u32, 3);
    let mut map = DmaMap { argsz, flags, vaddr: memory(), iova: 0, size: MEMORY };
    line("IOMMU_MAP_DMA", call(&container, IOMMU_MAP_DMA, &mut map));
    line("IOMMU_MAP_DMA again", call(&container, IOMMU_MAP_DMA, &mut map));
    let mut file = new_descriptor("GROUP_GET_DEVICE_FD", device_fd(&group)?)?;
    device(&mut file)?;
    line("GROUP_UNSET_CONTAINER", call_number(&group, GROUP_UNSET_CONTAINER, 0));
    let mut unmap = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, size: MEMORY, ..Default::default() };
    tell("IOMMU_UNMAP_DMA", call(&container, IOMMU_UNMAP_DMA, &mut unmap));
    println!(" size {:#x}", unmap.size);
    drop(file);
    line("GROUP_UNSET_CONTAINER", call_number(&group, GROUP_UNSET_CONTAINER, 0));
    Ok(())
}

fn cdev(path: &str) -> io::Result<()> {
    let mut file = open(path)?;
    let iommufd = open("/dev/iommu")?;
    let mut info = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..Default::default() };
    line("DEVICE_GET_INFO unbound", call(&file, DEVICE_GET_INFO, &mut info));
    let mut bind = Bind { argsz: size_of::<Bind>() as u32, iommufd: file.as_raw_fd(), ..Default::default() };
    line("BIND_IOMMUFD to itself", call(&file, BIND_IOMMUFD, &mut bind));
    bind.iommufd = iommufd.as_raw_fd();
    tell("BIND_IOMMUFD", call(&file, BIND_IOMMUFD, &mut bind));
    println!(" id {}", bind.id);
    line("BIND_IOMMUFD again", call(&file, BIND_IOMMUFD, &mut bind));
    let mut ioas = Identified { size: size_of::<Identified>() as u32, ..Default::default() };
    tell("IOAS_ALLOC", call(&iommufd, IOAS_ALLOC, &mut ioas));
    println!(" id {}", ioas.id);
    let mut attach = Identified { size: size_of::<Identified>() as u32, flags: 0, id: 77 };
    line("ATTACH_IOMMUFD_PT unknown", call(&file, ATTACH_IOMMUFD_PT, &mut attach));
    attach.id = ioas.id;
    tell("ATTACH_IOMMUFD_PT", call(&file, ATTACH_IOMMUFD_PT, &mut attach));
    println!(" id {}", attach.id);
    let mut ranges = [Range::default(); 4];
    let place = ranges.as_mut_ptr() as u64;
    let mut list = Ranges { size: size_of::<Ranges>() as u32, id: ioas.id, ranges: place, ..Default::default() };
    tell("IOAS_IOVA_RANGES", call(&iommufd, IOAS_IOVA_RANGES, &mut list));
    println!(" count {}", list.count);
    tell("IOAS_IOVA_RANGES", call(&iommufd, IOAS_IOVA_RANGES, &mut list));
    // The kernel has written to them, which the compiler cannot know.
    let first = unsafe { std::ptr::read_volatile(&ranges[0]) };
    println!(" {:x}-{:x} alignment {}", first.start, first.last, list.alignment);
    let size = size_of::<Map>() as u32;
    let mut map = Map { size, flags: 7, id: ioas.id, va: memory(), length: MEMORY, ..Default::default() };
    line("IOAS_MAP", call(&iommufd, IOAS_MAP, &mut map));
    device(&mut file)?;
    let mut destroy = Pair { size: size_of::<Pair>() as u32, value: ioas.id };
    line("DESTROY in use", call(&iommufd, DESTROY, &mut destroy));
    let mut detach = Pair { size: size_of::<Pair>() as u32, value: 0 };
    line("DETACH_IOMMUFD_PT", call(&file, DETACH_IOMMUFD_PT, &mut detach));
    let mut unmap = Unmap { size: size_of::<Unmap>() as u32, id: ioas.id, iova: 0, length: u64::MAX };
    tell("IOAS_UNMAP", call(&iommufd, IOAS_UNMAP, &mut unmap));
    println!(" length {:#x}", unmap.length);
    line("DESTROY", call(&iommufd, DESTROY, &mut destroy));
    Ok(())
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["legacy", group, uuid] => legacy(group, uuid),
        ["cdev", node] => cdev(node),
        _ => {
            eprintln!("usage: sequence legacy GROUP UUID | sequence cdev NODE");
            exit(2);
        }
    };
    if let Err(error) = result {
        eprintln!("{}", error);
        exit(1);
    }
}
