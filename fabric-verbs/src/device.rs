//! An open device and its port.

use std::ffi::CStr;
use std::fmt;

use ibverbs_sys as sys;

use crate::gid::{self, Gid, GidKind};
use crate::library::{Verbs, check, last_error, verbs};
use crate::options::VerbsOptions;

/// Advice for hosts without a device.
pub(crate) const NO_DEVICE: &str = "look for a card (`lspci`, `ibv_devices`), and load its kernel driver \
    (mlx5_ib, ...) and ib_uverbs (`modprobe`); Soft-RoCE makes a device of any network interface: \
    `rdma link add rxe0 type rxe netdev eth0`";

/// An open `ibv_context`, and the chosen port.
pub(crate) struct Device {
    pub(crate) verbs: &'static Verbs,
    pub(crate) context: *mut sys::ibv_context,
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) limits: Limits,
}

// SAFETY: libibverbs is thread safe on contexts (rdma-core, Documentation/libibverbs.md); the pointer is closed by drop
// only.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// An active port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) number: u8,
    pub(crate) ethernet: bool,
    pub(crate) lid: u16,
    /// `enum ibv_mtu`: 1 is 256 bytes, 5 is 4096.
    pub(crate) mtu: u8,
    pub(crate) max_message: u32,
    pub(crate) gid: Gid,
}

/// The attributes of the device that this crate uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Reads that a queue pair may have in flight as the reader.
    pub(crate) reads_asked: u8,
    /// Reads that a queue pair serves at once.
    pub(crate) reads_served: u8,
    pub(crate) max_work_requests: u32,
    pub(crate) max_completions: u32,
    /// Whether the device has memory windows of type 2 that are bound to a queue pair.
    pub(crate) windows: bool,
}

/// A device in the list of devices, before one is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) ports: Vec<FoundPort>,
    /// The reason why the device cannot be opened, if there is one.
    pub(crate) refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundPort {
    pub(crate) number: u8,
    pub(crate) active: bool,
    /// The state of the port, such as `PORT_DOWN`.
    pub(crate) state: &'static str,
    pub(crate) ethernet: bool,
    pub(crate) gids: Vec<Gid>,
}

/// All devices of this host, with their ports.
pub(crate) fn find(verbs: &'static Verbs) -> Result<Vec<Found>, String> {
    with_list(verbs, |devices| devices.iter().map(|&device| describe(verbs, device)).collect())
}

fn with_list<T>(verbs: &'static Verbs, use_it: impl FnOnce(&[*mut sys::ibv_device]) -> T) -> Result<T, String> {
    let mut count = 0;
    // SAFETY: room for the count.
    let list = unsafe { (verbs.ibv_get_device_list)(&mut count) };
    if list.is_null() {
        let error = std::io::Error::last_os_error();
        // The library returns this error if the kernel has no RDMA.
        let advice = if error.raw_os_error() == Some(libc::ENOSYS) { NO_DEVICE } else { "look at `ibv_devices`" };
        return Err(format!("ibv_get_device_list: {error}; {advice}"));
    }
    let len = usize::try_from(count).unwrap_or(0);
    // SAFETY: the library returned an array of that many pointers, which lives until it is freed below.
    let result = use_it(unsafe { std::slice::from_raw_parts(list, len) });
    // SAFETY: from `ibv_get_device_list`, freed once; open contexts keep their device.
    unsafe { (verbs.ibv_free_device_list)(list) };
    Ok(result)
}

fn name_of(verbs: &'static Verbs, device: *mut sys::ibv_device) -> String {
    // SAFETY: a device of a list that is not freed yet; the name is a C string within it.
    unsafe { CStr::from_ptr((verbs.ibv_get_device_name)(device)) }.to_string_lossy().into_owned()
}

fn describe(verbs: &'static Verbs, device: *mut sys::ibv_device) -> Found {
    let name = name_of(verbs, device);
    let opened = Context::open(verbs, device).and_then(|context| {
        let ports = context.attributes()?.phys_port_cnt;
        (1..=ports).map(|number| describe_port(&name, &context, number)).collect::<Result<Vec<_>, _>>()
    });
    match opened {
        Ok(ports) => Found { name, ports, refused: None },
        Err(reason) => Found { name, ports: Vec::new(), refused: Some(reason) },
    }
}

fn describe_port(device: &str, context: &Context, number: u8) -> Result<FoundPort, String> {
    let port = context.port(number)?;
    let state = match port.state {
        sys::ibv_port_state::IBV_PORT_DOWN => "PORT_DOWN",
        sys::ibv_port_state::IBV_PORT_INIT => "PORT_INIT",
        sys::ibv_port_state::IBV_PORT_ARMED => "PORT_ARMED",
        sys::ibv_port_state::IBV_PORT_ACTIVE => "PORT_ACTIVE",
        sys::ibv_port_state::IBV_PORT_ACTIVE_DEFER => "PORT_ACTIVE_DEFER",
        _ => "PORT_NOP",
    };
    Ok(FoundPort {
        number,
        active: port.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
        state,
        ethernet: is_ethernet(&port),
        gids: gid::of_port(device, number),
    })
}

fn is_ethernet(port: &sys::ibv_port_attr) -> bool {
    u32::from(port.link_layer) == sys::IBV_LINK_LAYER_ETHERNET
}

/// An open context, closed by its drop.
struct Context {
    verbs: &'static Verbs,
    context: *mut sys::ibv_context,
}

impl Context {
    fn open(verbs: &'static Verbs, device: *mut sys::ibv_device) -> Result<Self, String> {
        // SAFETY: a device of a list that is not freed yet.
        let context = unsafe { (verbs.ibv_open_device)(device) };
        if context.is_null() {
            return Err(format!(
                "{}; look at the rights of /dev/infiniband/uverbs* and, in a container, whether they are passed in",
                last_error("ibv_open_device")
            ));
        }
        Ok(Context { verbs, context })
    }

    fn attributes(&self) -> Result<sys::ibv_device_attr, String> {
        let mut attributes = sys::ibv_device_attr::default();
        // SAFETY: an open context, and room for the attributes.
        check("ibv_query_device", unsafe { (self.verbs.ibv_query_device)(self.context, &mut attributes) })?;
        Ok(attributes)
    }

    fn port(&self, number: u8) -> Result<sys::ibv_port_attr, String> {
        let mut port = sys::ibv_port_attr::default();
        // SAFETY: an open context. The exported function fills the older, shorter layout, a prefix of this one, which
        // is zero beyond, as `ibv_query_port` of verbs.h has it.
        check("ibv_query_port", unsafe { (self.verbs.ibv_query_port)(self.context, number, &mut port) })?;
        Ok(port)
    }

    /// Passes the context to a [`Device`].
    fn keep(self) -> *mut sys::ibv_context {
        std::mem::ManuallyDrop::new(self).context
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once; no other object was made of it.
        unsafe { (self.verbs.ibv_close_device)(self.context) };
    }
}

impl Device {
    /// Opens the device that the options name, otherwise the first device with an active port.
    pub(crate) fn open(options: &VerbsOptions) -> Result<Self, String> {
        let verbs = verbs()?;
        let found = find(verbs)?;
        if found.is_empty() {
            return Err(format!("there is no RDMA device on this host; {NO_DEVICE}"));
        }
        let (device, port) = choose(&found, options)?;
        let gid = gid::choose(&port.gids, port.ethernet, options.gid)
            .map_err(|reason| format!("device {} port {}: {reason}", device.name, port.number))?;
        with_list(verbs, |devices| {
            let handle = devices.iter().copied().find(|&handle| name_of(verbs, handle) == device.name);
            let context = Context::open(verbs, handle.ok_or("the device was removed just now")?)?;
            let limits = Limits::new(&context.attributes()?);
            let attributes = context.port(port.number)?;
            let port = Port {
                number: port.number,
                ethernet: port.ethernet,
                lid: attributes.lid,
                mtu: u8::try_from(attributes.active_mtu).unwrap_or(1),
                max_message: attributes.max_msg_sz,
                gid,
            };
            Ok(Device { verbs, context: context.keep(), name: device.name.clone(), port, limits })
        })?
    }

    /// The functions that are inline functions in verbs.h.
    pub(crate) fn operations(&self) -> &sys::ibv_context_ops {
        // SAFETY: an open context, whose table of operations does not change.
        unsafe { &(*self.context).ops }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once; every object that was made of it holds the device by `Arc`.
        if let Err(reason) = check("ibv_close_device", unsafe { (self.verbs.ibv_close_device)(self.context) }) {
            tracing::error!(reason, device = self.name, "an RDMA device could not be closed");
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} port {}, {})", self.name, self.port.number, self.port.gid)
    }
}

impl Limits {
    fn new(attributes: &sys::ibv_device_attr) -> Self {
        let count = |of: i32| u32::try_from(of).unwrap_or(0);
        let flags = attributes.device_cap_flags;
        Limits {
            reads_asked: count(attributes.max_qp_init_rd_atom).min(u8::MAX.into()) as u8,
            reads_served: count(attributes.max_qp_rd_atom).min(u8::MAX.into()) as u8,
            max_work_requests: count(attributes.max_qp_wr),
            max_completions: count(attributes.max_cqe),
            windows: attributes.max_mw > 0 && flags & sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B != 0,
        }
    }
}

/// The device and port that the options name, otherwise the first active port.
fn choose<'a>(found: &'a [Found], options: &VerbsOptions) -> Result<(&'a Found, &'a FoundPort), String> {
    let names = || found.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    let named = |device: &&Found| options.device.as_ref().is_none_or(|name| *name == device.name);
    let mut seen = Vec::new();
    for device in found.iter().filter(named) {
        if let Some(reason) = &device.refused {
            seen.push(format!("{}: {reason}", device.name));
        }
        for port in device.ports.iter().filter(|port| options.port.is_none_or(|number| number == port.number)) {
            if port.active {
                return Ok((device, port));
            }
            seen.push(format!("{} port {} is in state {}", device.name, port.number, port.state));
        }
    }
    if let Some(name) = &options.device
        && !found.iter().any(|device| device.name == *name)
    {
        return Err(format!("no device {name:?} (there are: {})", names()));
    }
    if seen.is_empty() {
        let wanted = options.port.unwrap_or(1);
        return Err(format!("no port {wanted} on {}", options.device.clone().unwrap_or_else(names)));
    }
    Err(format!(
        "no active port: {}; look at the cable, at the subnet manager (InfiniBand: state PORT_INIT means that there is \
         none), and at `ip link` (RoCE)",
        seen.join("; ")
    ))
}

/// Checks whether two ports can be connected at all.
pub(crate) fn same_kind(ours: &Port, peer_ethernet: bool, peer_gid: GidKind) -> Result<(), String> {
    let link = |ethernet| if ethernet { "Ethernet (RoCE)" } else { "InfiniBand" };
    if ours.ethernet != peer_ethernet {
        return Err(format!("this end's port is on {}, the peer's on {}", link(ours.ethernet), link(peer_ethernet)));
    }
    if ours.gid.kind != peer_gid {
        return Err(format!(
            "this end's GID is of {}, the peer's of {peer_gid}: choose GIDs of one kind by the option gid",
            ours.gid.kind
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u8, active: bool) -> FoundPort {
        let state = if active { "PORT_ACTIVE" } else { "PORT_DOWN" };
        FoundPort { number, active, state, ethernet: true, gids: Vec::new() }
    }

    fn host() -> Vec<Found> {
        vec![
            Found { name: "a".into(), ports: Vec::new(), refused: Some("no rights".into()) },
            Found { name: "b".into(), ports: vec![port(1, false), port(2, true)], refused: None },
            Found { name: "c".into(), ports: vec![port(1, true)], refused: None },
        ]
    }

    #[test]
    fn the_first_active_port_is_chosen_unless_one_is_named() {
        let host = host();
        let chosen = |device: Option<&str>, port| {
            let options = VerbsOptions { device: device.map(str::to_owned), port, ..VerbsOptions::default() };
            choose(&host, &options).map(|(device, port)| (device.name.as_str(), port.number))
        };
        assert_eq!(chosen(None, None), Ok(("b", 2)));
        assert_eq!(chosen(None, Some(1)), Ok(("c", 1)));
        assert_eq!(chosen(Some("c"), None), Ok(("c", 1)));
        assert!(chosen(Some("d"), None).unwrap_err().contains("there are: a, b, c"));
        assert!(chosen(Some("a"), None).unwrap_err().contains("no rights"));
        assert!(chosen(Some("b"), Some(1)).unwrap_err().contains("b port 1 is in state PORT_DOWN"));
        assert!(chosen(Some("b"), Some(7)).unwrap_err().contains("no port 7 on b"));
    }
}
